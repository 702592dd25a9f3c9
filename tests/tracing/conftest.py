"""Small models of every built-in kind with four layers, batches with padding, and faults to plant in a chosen layer."""

import copy
import functools

import pytest
import torch

from mpsdiag.words import BUILTIN_DECODERS

LAYERS = 4
WINDOW = 5


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The machine is shared, and sums split over threads have another last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def _original(name):
    from transformers import AutoModelForCausalLM

    from mpsdiag.inputs.builtin import builtin_config

    plain = builtin_config(name, max_positions=64).to_dict()
    for key in ("layer_types", "transformers_version", "architectures", "dtype"):
        plain.pop(key, None)
    kind = type(builtin_config(name))
    plain |= {"n_layer": LAYERS} if name == "tiny-gpt2" else {"num_hidden_layers": LAYERS}
    if name == "tiny-mistral":
        plain["sliding_window"] = WINDOW
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(kind(**plain)).eval()
    model.loss_type = "ForCausalLM"
    return model


@pytest.fixture(scope="session")
def build():
    """Make a model that a test may change: `build("tiny-llama", "float16")`."""

    def make(name="tiny-llama", dtype="float32"):
        return copy.deepcopy(_original(name)).to(getattr(torch, dtype))

    return make


@pytest.fixture(params=BUILTIN_DECODERS)
def name(request):
    return request.param


@pytest.fixture(params=["float32", "bfloat16", "float16"])
def dtype(request):
    return request.param


def make_batch(pads=(3, 0, 2), length=11, side="left", seed=0, labels=True):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 259, (len(pads), length), generator=generator)
    mask = torch.ones_like(ids)
    for row, pad in enumerate(pads):
        if pad:
            mask[row, slice(0, pad) if side == "left" else slice(length - pad, length)] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if labels:
        batch["labels"] = ids.masked_fill(mask == 0, -100)
    return batch


@pytest.fixture(scope="session")
def batch_of():
    return make_batch


class Plants:
    """Faults, each put into one layer; each says which module and operation should be named."""

    @staticmethod
    def layers(model):
        return model.transformer.h if hasattr(model, "transformer") else model.model.layers

    @classmethod
    def attention(cls, model, layer):
        block = cls.layers(model)[layer]
        return block.attn if hasattr(block, "attn") else block.self_attn

    @classmethod
    def path(cls, model, module):
        return next(name for name, other in model.named_modules() if other is module)

    @classmethod
    def on_mask(cls, model, layer, change):
        """Change the mask that reaches the attention of one layer."""

        def hook(module, args, kwargs):
            return args, {**kwargs, "attention_mask": change(kwargs["attention_mask"])}

        cls.attention(model, layer).register_forward_pre_hook(hook, with_kwargs=True)

    @classmethod
    def explicit_causal_mask(cls, model, layer, length):
        """The attention of this layer gets a float mask instead of `is_causal`, in the dtype it runs in."""

        def hook(module, args, kwargs):
            dtype = next(module.parameters()).dtype
            mask = torch.full((1, 1, length, length), torch.finfo(dtype).min, dtype=dtype).triu(1)
            return args, {**kwargs, "attention_mask": mask}

        cls.attention(model, layer).register_forward_pre_hook(hook, with_kwargs=True)

    @classmethod
    def dead_rows_from(cls, model, layer):
        """Dead rows reach no attention before this layer."""
        for earlier in range(layer):
            cls.on_mask(model, earlier, lambda mask: mask | ~mask.any(-1, keepdim=True))
        return cls.path(model, cls.attention(model, layer)), "scaled_dot_product_attention"

    @classmethod
    def doubled_mask(cls, model, layer, dtype):
        """A float mask of finfo.min everywhere; in one layer it is added to itself."""
        low = torch.finfo(dtype).min

        def single(mask):
            return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, low)

        for other in range(LAYERS):
            if other == layer:
                cls.on_mask(model, other, lambda mask: single(mask) + single(mask))
            else:
                cls.on_mask(model, other, single)
        return cls.path(model, cls.layers(model)[layer]), "add"

    @classmethod
    def swapped_mask(cls, model, layer):
        """In one layer the sequences get each other's masks."""
        for other in range(LAYERS):
            flip = other == layer
            cls.on_mask(model, other, lambda mask, f=flip: mask.flip(0) if f else mask | ~mask.any(-1, keepdim=True))
        return cls.path(model, cls.attention(model, layer)), "scaled_dot_product_attention"

    @classmethod
    def projection(cls, model, layer):
        """The last matrix of the layer's MLP, and the operation that applies it."""
        mlp = cls.layers(model)[layer].mlp
        return (mlp.c_proj, "addmm") if hasattr(mlp, "c_proj") else (mlp.down_proj, "linear")

    @classmethod
    def overflow(cls, model, layer):
        module, operation = cls.projection(model, layer)
        with torch.no_grad():
            module.weight.fill_(torch.finfo(module.weight.dtype).max)
            if hasattr(cls.layers(model)[layer].mlp, "up_proj"):  # What it multiplies is tiny otherwise.
                cls.layers(model)[layer].mlp.up_proj.weight.mul_(1000.0)
        return cls.path(model, module), operation

    @classmethod
    def bad_weight(cls, model, layer, value=float("nan")):
        attention = cls.attention(model, layer)
        module, operation = (
            (attention.c_attn, "addmm") if hasattr(attention, "c_attn") else (attention.k_proj, "linear")
        )
        with torch.no_grad():
            module.weight[3, 5] = value
        return cls.path(model, module), operation

    @classmethod
    def root_of_negative(cls, model, layer):
        """Something no rule knows."""
        module, _ = cls.projection(model, layer)
        module.register_forward_hook(lambda module, args, output: torch.sqrt(-1.0 - output.abs()))
        return cls.path(model, module), "sqrt"


@pytest.fixture(scope="session")
def plants():
    return Plants
