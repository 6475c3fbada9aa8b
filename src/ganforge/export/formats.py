"""The file formats of an exported generator: how each is written and read."""

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
"""A generator called with its inputs as positional tensors."""

KEY = "ganforge"
"""The key of the interface in a file's metadata."""


class Format:
    """A file format. `reads_with` and `writes_with` are the packages of the extra `export` that it needs."""

    suffix: ClassVar[str]
    reads_with: ClassVar[tuple[str, ...]] = ()
    writes_with: ClassVar[tuple[str, ...]] = ()

    def write(self, network: ExportModule, interface: Interface) -> bytes:
        """The file's content, for a network in eval mode."""
        raise NotImplementedError

    def read(self, path: Path) -> tuple[Network, Interface]:
        """Raises UserError for a file that export.py did not write."""
        raise NotImplementedError


class ONNX(Format):
    """A graph for onnxruntime and other runtimes, with or without Python."""

    suffix = ".onnx"
    reads_with = ("onnxruntime",)
    writes_with = ("onnx", "onnxscript", "onnxruntime")

    def write(self, network: ExportModule, interface: Interface) -> bytes:
        for name in ("onnxscript", "onnx_ir"):  # they log every optimization
            logging.getLogger(name).setLevel(logging.WARNING)
        with _no_warnings():
            program = torch.onnx.export(
                network,
                _trace_inputs(interface),
                input_names=[entry.name for entry in interface.inputs],
                output_names=[interface.output],
                dynamic_shapes=(tuple(_dynamic_sizes(entry.shape, str) for entry in interface.inputs),),
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
    """A graph of torch operators, which torch also compiles ahead of time and for C++."""

    suffix = ".pt2"

    def write(self, network: ExportModule, interface: Interface) -> bytes:
        free = tuple(_dynamic_sizes(entry.shape, lambda _: torch.export.Dim.DYNAMIC) for entry in interface.inputs)
        content = BytesIO()
        with _no_warnings():
            program = torch.export.export(network, _trace_inputs(interface), dynamic_shapes=(free,))
            torch.export.save(program, content, extra_files={KEY: interface.text()})
        return content.getvalue()

    def read(self, path: Path) -> tuple[Network, Interface]:
        extra = {KEY: ""}
        network = torch.export.load(path, extra_files=extra).module()
        return network, read_interface(extra[KEY], path)


class SafeTensors(Format):
    """The weights and the generator's config, from which ganforge rebuilds it. Reading one cannot run code."""

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
def _no_warnings() -> Iterator[None]:
    """Silence torch's warnings about axis names and memory formats: export.py verifies the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check_installed(purpose: str, packages: tuple[str, ...]) -> None:
    """Raise UserError if a package is missing; `purpose` begins the message."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(f'{purpose} needs {", ".join(missing)}: pip install -e ".[export]"')


def _trace_inputs(interface: Interface) -> tuple[Tensor, ...]:
    """Inputs to trace with, of sizes above 1: torch would take a 1 for a constant."""
    return tuple(interface.examples(2, 24, 20, seed=0))


def _dynamic_sizes(shape: tuple[int | str, ...], size_of: Callable[[str], Any]) -> dict[int, Any]:
    """The free sizes of a shape, by their position."""
    return {i: size_of(name) for i, name in enumerate(shape) if isinstance(name, str)}
