"""The module that the engine trains: encoders, fusion network and loss together.

The loss is part of it because its log-variances are learned. The encoders are part of it so that
their LoRA weights are optimised and reduced with the rest, but `forward` starts at the vectors: who
encodes, and how often, is decided outside (`embedcache.live`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn

from embedcache.kernels import has_kernels
from fusionnet.config.train import OptimConfig
from fusionnet.model.linear import cast_at_once
from fusionnet.model.loss import LossParts, MultiTaskLoss
from fusionnet.model.network import FusionNetwork
from fusionnet.rows.tensors import RowInputs


class TrainableModel(nn.Module):
    """Encoders, fusion network and multi-task loss.

    An encoder has the name of the first string column that it reads.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        network: FusionNetwork,
        loss: MultiTaskLoss,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.network = network
        self.loss = loss
        self._autocast_dtype = autocast_dtype

    def forward(
        self,
        vectors: Sequence[Float[Tensor, "_ _"]],
        inputs: RowInputs,
        targets: Float[Tensor, "B T"],
        weight: Float[Tensor, " B"],
        denominators: Float[Tensor, " T"],
        share: float,
    ) -> LossParts:
        """Return one micro-batch's share of the step's loss; see `MultiTaskLoss`.

        `vectors` has one matrix [U, E] per string column.
        """
        outputs = self.outputs(vectors, inputs)
        return self.loss(outputs, targets, weight, denominators, share)

    def outputs(
        self, vectors: Sequence[Float[Tensor, "_ _"]], inputs: RowInputs
    ) -> Float[Tensor, "B O"]:
        """Return the heads' outputs in fp32: standardised numbers, or logits of classes."""
        with self.autocast():
            return self.network(vectors, inputs).float()

    @property
    def product_dtype(self) -> torch.dtype:
        """The dtype of the large products."""
        return self._autocast_dtype or self.network.projection.weight.dtype

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which forward passes of encoders and network run."""
        device = next(self.network.parameters()).device.type
        return torch.autocast(
            device,
            dtype=self._autocast_dtype or torch.bfloat16,
            enabled=self._autocast_dtype is not None,
        )

    @contextmanager
    def computing_in(self, dtype: torch.dtype | None) -> Iterator[None]:
        """Let large products be in this dtype until the block ends; None: in the weights' own."""
        before, self._autocast_dtype = self._autocast_dtype, dtype
        try:
            yield
        finally:
            self._autocast_dtype = before

    def cast_weights(self) -> AbstractContextManager[None]:
        """Return the context of one step, in which the network's weights are cast at once."""
        if self._autocast_dtype is None or not has_kernels(self.network.projection.weight):
            return nullcontext()
        return cast_at_once(self.network, self._autocast_dtype)

    def parameter_groups(self, optim: OptimConfig) -> list[dict[str, object]]:
        """Return AdamW groups: LoRA, fresh weights, and log-variances, which have no decay."""
        return [
            {"name": "encoder", "params": _trainable(self.encoders), "lr": optim.lr_encoder},
            {"name": "network", "params": _trainable(self.network), "lr": optim.lr},
            {
                "name": "log_variance",
                "params": _trainable(self.loss),
                "lr": optim.lr_log_variance,
                "weight_decay": 0.0,
            },
        ]

    def parameter_table(self) -> list[tuple[str, int, int]]:
        """Return (component, parameters, trainable ones) in the order of the data."""
        rows = []
        for name, encoder in self.encoders.items():
            adapters = sum(parameter.numel() for parameter in _trainable(encoder))
            frozen = sum(parameter.numel() for parameter in encoder.parameters()) - adapters
            rows.append((f"encoder {name} (frozen)", frozen, 0))
            rows.append((f"encoder {name} LoRA", adapters, adapters))
        rows += [(name, number, number) for name, number in self.network.parameter_table()]
        log_variance = self.loss.log_variance
        learned = log_variance.numel() if log_variance.requires_grad else 0
        rows.append(("loss log-variances", log_variance.numel(), learned))
        return rows

    def trainable_state(self) -> dict[str, Tensor]:
        """Return the trainable parameters by name.

        The frozen base encoder is named by its digest instead.
        """
        return {
            name: parameter.detach().cpu().clone()
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Load parameters by name, such as `trainable_state` returned.

        Each must exist, with the same shape.
        """
        own = dict(self.named_parameters())
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
