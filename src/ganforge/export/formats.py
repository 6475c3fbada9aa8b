"""The files that a generator can be handed over in: how each is written, and read again."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from ganforge.experiment.trust import validate_untrusted
from ganforge.export.interface import ExportModule, Interface, read_interface
from ganforge.runtime.errors import UserError

Network = Callable[..., Tensor]
"""A generator on its own, called with its inputs in their order."""

KEY = "ganforge"
"""What the interface is called in a file's metadata."""


class Format:
    """A kind of file, told by its `suffix`. Reading and writing take these packages of the extra `export`."""

    suffix: ClassVar[str]
    reads_with: ClassVar[tuple[str, ...]] = ()
    writes_with: ClassVar[tuple[str, ...]] = ()

    def write(self, network: ExportModule, interface: Interface) -> bytes:
        """The content of a file with a network that is in eval mode."""
        raise NotImplementedError

    def read(self, path: Path) -> tuple[Network, Interface]:
        """Raises UserError where a file is not of ours."""
        raise NotImplementedError


class ONNX(Format):
    """A graph that onnxruntime and others run, without Python if need be."""

    suffix = ".onnx"
    reads_with = ("onnxruntime",)
    writes_with = ("onnx", "onnxscript", "onnxruntime")

    def write(self, network: ExportModule, interface: Interface) -> bytes:
        for name in ("onnxscript", "onnx_ir"):  # which tell how they optimize
            logging.getLogger(name).setLevel(logging.WARNING)
        with quietly():
            program = torch.onnx.export(
                network,
                _traced_with(interface),
                input_names=[entry.name for entry in interface.inputs],
                output_names=[interface.output],
                dynamic_shapes=(tuple(_free(entry.shape, str) for entry in interface.inputs),),
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        model = program.model_proto
        entry = model.metadata_props.add()
        entry.key, entry.value = KEY, interface.text()
        return model.SerializeToString()

    def read(self, path: Path) -> tuple[Network, Interface]:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        interface = read_interface(session.get_modelmeta().custom_metadata_map.get(KEY), path)
        names = [entry.name for entry in interface.inputs]

        def network(*inputs: Tensor) -> Tensor:
            arrays = (tensor.contiguous().numpy() for tensor in inputs)
            return torch.from_numpy(session.run(None, dict(zip(names, arrays, strict=True)))[0])

        return network, interface


class TorchExport(Format):
    """A graph of torch's own operators: what torch compiles, also ahead of time and for C++."""

    suffix = ".pt2"

    def write(self, network: ExportModule, interface: Interface) -> bytes:
        free = tuple(_free(entry.shape, lambda _: torch.export.Dim.DYNAMIC) for entry in interface.inputs)
        content = BytesIO()
        with quietly():
            program = torch.export.export(network, _traced_with(interface), dynamic_shapes=(free,))
            torch.export.save(program, content, extra_files={KEY: interface.text()})
        return content.getvalue()

    def read(self, path: Path) -> tuple[Network, Interface]:
        extra = {KEY: ""}
        network = torch.export.load(path, extra_files=extra).module()
        return network, read_interface(extra[KEY], path)


class SafeTensors(Format):
    """The weights alone, from which the generator is built again: read by ganforge, and harmless."""

    suffix = ".safetensors"
    reads_with = writes_with = ("safetensors",)

    def write(self, network: ExportModule, interface: Interface) -> bytes:
        from safetensors.torch import save

        weights = {name: value.contiguous() for name, value in network.generator.state_dict().items()}
        return save(weights, {KEY: interface.text()})

    def read(self, path: Path) -> tuple[Network, Interface]:
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            interface = read_interface((file.metadata() or {}).get(KEY), path)
            generator: nn.Module = instantiate(
                validate_untrusted(OmegaConf.create(interface.generator)), _convert_="all"
            )
            generator.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return ExportModule(generator, len(interface.latents)).eval(), interface


FORMATS: dict[str, Format] = {"onnx": ONNX(), "torch_export": TorchExport(), "safetensors": SafeTensors()}


@contextmanager
def quietly() -> Iterator[None]:
    """Without torch's warnings about names of axes and memory formats: what it writes is checked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check_installed(what: str, packages: tuple[str, ...]) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(f'{what} needs {", ".join(missing)}: pip install -e ".[export]"')


def _traced_with(interface: Interface) -> tuple[Tensor, ...]:
    """Inputs of sizes that are no special case: a 1 would be taken for a constant."""
    return tuple(interface.examples(2, 24, 20, seed=0))


def _free(shape: tuple[int | str, ...], size: Callable[[str], Any]) -> dict[int, Any]:
    """The sizes that may differ, by their position."""
    return {i: size(name) for i, name in enumerate(shape) if isinstance(name, str)}
