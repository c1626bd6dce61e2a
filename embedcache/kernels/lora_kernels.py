"""What `lora` launches: the forward kernel, and two backward, each of which writes two gradients.

Axes: K tokens; NUM projections lie side by side; r is LoRA's rank. low is drop(x) A^T [K, r].
"""

from typing import no_type_check

import triton
import triton.language as tl

from embedcache.kernels.dropout_mask import keep


@triton.jit
@no_type_check  # or the tests' shape checks would wrap what Triton compiles
def _pick(number, first_ptr, second_ptr, third_ptr):
    """Return the pointer of that number."""
    pointer = first_ptr
    if number == 1:
        pointer = second_ptr
    if number == 2:
        pointer = third_ptr
    return pointer


@triton.jit
@no_type_check
def _offsets(
    rows, first_column, num_rows, STRIDE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """Return where rows lie, columns from the first one on, and which exist, [rows, BLOCK]."""
    columns = first_column + tl.arange(0, BLOCK)
    inside = (rows < num_rows)[:, None] & (columns < WIDTH)[None, :]
    return rows.to(tl.int64)[:, None] * STRIDE + columns[None, :], inside


@triton.jit
@no_type_check
def forward_kernel(
    x_ptr,  # [K, width_in]
    first_a_ptr,  # [r, width_in]
    second_a_ptr,
    third_a_ptr,
    first_b_ptr,  # [width_out, r]
    second_b_ptr,
    third_b_ptr,
    seed_ptr,  # [1]
    keep_ptr,  # [NUM, K, width_in] int8
    low_ptr,  # [NUM, K, r]
    y_ptr,  # [K, NUM width_out]
    num_tokens,
    threshold,
    factor,
    NUM: tl.constexpr,
    WIDTH_IN: tl.constexpr,
    WIDTH_OUT: tl.constexpr,
    RANK: tl.constexpr,
    DROPS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Write drop(x) A^T, and add factor times its product with B^T to y."""
    number = tl.program_id(1)
    tokens = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    ranks = tl.arange(0, BLOCK_R)
    a_ptr = _pick(number, first_a_ptr, second_a_ptr, third_a_ptr)
    b_ptr = _pick(number, first_b_ptr, second_b_ptr, third_b_ptr)
    total = tl.zeros([BLOCK_K, BLOCK_R], tl.float32)
    for first in range(0, WIDTH_IN, BLOCK_C):
        of_x, in_x = _offsets(tokens, first, num_tokens, WIDTH_IN, WIDTH_IN, BLOCK_C)
        x = tl.load(x_ptr + of_x, mask=in_x, other=0.0)
        if DROPS:
            rows = number * num_tokens + tokens
            kept = keep(seed_ptr, rows, first, threshold, BLOCK_K, BLOCK_C)
            target = keep_ptr + number * (num_tokens * WIDTH_IN) + of_x
            tl.store(target, kept.to(tl.int8), mask=in_x)
            x = tl.where(kept, x, 0.0).to(x.dtype)
        of_a, in_a = _offsets(ranks, first, RANK, WIDTH_IN, WIDTH_IN, BLOCK_C)
        a = tl.load(a_ptr + of_a, mask=in_a, other=0.0).to(x.dtype)
        total = tl.dot(x, tl.trans(a), total, input_precision="ieee")
    low = total.to(low_ptr.dtype.element_ty)
    of_low, in_low = _offsets(tokens, 0, num_tokens, RANK, RANK, BLOCK_R)
    tl.store(low_ptr + number * (num_tokens * RANK) + of_low, low, mask=in_low)
    for first in range(0, WIDTH_OUT, BLOCK_C):
        columns = first + tl.arange(0, BLOCK_C)
        of_b, in_b = _offsets(columns, 0, WIDTH_OUT, RANK, RANK, BLOCK_R)
        b = tl.load(b_ptr + of_b, mask=in_b, other=0.0).to(low.dtype)
        added = tl.dot(low, tl.trans(b), input_precision="ieee") * factor
        of_y, in_y = _offsets(tokens, first, num_tokens, NUM * WIDTH_OUT, WIDTH_OUT, BLOCK_C)
        target = y_ptr + number * WIDTH_OUT + of_y
        y = tl.load(target, mask=in_y, other=0.0).to(tl.float32) + added
        tl.store(target, y.to(y_ptr.dtype.element_ty), mask=in_y)


@triton.jit
@no_type_check
def _write_of_b(
    dy_ptr,
    low_ptr,
    of_b_ptr,
    block,
    num_tokens,
    factor,
    STRIDE: tl.constexpr,
    WIDTH_OUT: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Write factor dy^T low, the gradient of B, for a block of its rows."""
    total = tl.zeros([BLOCK_W, BLOCK_R], tl.float32)
    for first in range(0, num_tokens, BLOCK_T):
        tokens = first + tl.arange(0, BLOCK_T)
        of_dy, in_dy = _offsets(tokens, block * BLOCK_W, num_tokens, STRIDE, WIDTH_OUT, BLOCK_W)
        dy = tl.load(dy_ptr + of_dy, mask=in_dy, other=0.0)
        of_low, in_low = _offsets(tokens, 0, num_tokens, RANK, RANK, BLOCK_R)
        low = tl.load(low_ptr + of_low, mask=in_low, other=0.0)
        total = tl.dot(tl.trans(dy), low, total, input_precision="ieee")
    outs = block * BLOCK_W + tl.arange(0, BLOCK_W)
    target, inside = _offsets(outs, 0, WIDTH_OUT, RANK, RANK, BLOCK_R)
    tl.store(of_b_ptr + target, (total * factor).to(of_b_ptr.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _write_of_low(
    dy_ptr,
    b_ptr,
    of_low_ptr,
    block,
    num_tokens,
    factor,
    STRIDE: tl.constexpr,
    WIDTH_OUT: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Write factor dy B, the gradient of low, for a block of tokens."""
    tokens = block * BLOCK_K + tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_K, BLOCK_R], tl.float32)
    for first in range(0, WIDTH_OUT, BLOCK_C):
        of_dy, in_dy = _offsets(tokens, first, num_tokens, STRIDE, WIDTH_OUT, BLOCK_C)
        dy = tl.load(dy_ptr + of_dy, mask=in_dy, other=0.0)
        outs = first + tl.arange(0, BLOCK_C)
        of_b, in_b = _offsets(outs, 0, WIDTH_OUT, RANK, RANK, BLOCK_R)
        b = tl.load(b_ptr + of_b, mask=in_b, other=0.0).to(dy.dtype)
        total = tl.dot(dy, b, total, input_precision="ieee")
    target, inside = _offsets(tokens, 0, num_tokens, RANK, RANK, BLOCK_R)
    tl.store(of_low_ptr + target, (total * factor).to(of_low_ptr.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def backward_low_kernel(
    gradient_ptr,  # [K, NUM width_out]
    first_b_ptr,  # [width_out, r]
    second_b_ptr,
    third_b_ptr,
    low_ptr,  # [NUM, K, r]
    of_low_ptr,  # [NUM, K, r]
    of_b_ptr,  # [NUM, width_out, r]
    num_tokens,
    factor,
    NUM: tl.constexpr,
    WIDTH_OUT: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Write the gradients of B and of low; the longer programs, B's, come first."""
    block, number = tl.program_id(0), tl.program_id(1)
    num_b_blocks = tl.cdiv(WIDTH_OUT, BLOCK_W)
    dy_ptr = gradient_ptr + number * WIDTH_OUT
    of_number = number * (num_tokens * RANK)
    if block < num_b_blocks:
        _write_of_b(
            dy_ptr,
            low_ptr + of_number,
            of_b_ptr + number * (WIDTH_OUT * RANK),
            block,
            num_tokens,
            factor,
            NUM * WIDTH_OUT,
            WIDTH_OUT,
            RANK,
            BLOCK_T,
            BLOCK_W,
            BLOCK_R,
        )
    else:
        _write_of_low(
            dy_ptr,
            _pick(number, first_b_ptr, second_b_ptr, third_b_ptr),
            of_low_ptr + of_number,
            block - num_b_blocks,
            num_tokens,
            factor,
            NUM * WIDTH_OUT,
            WIDTH_OUT,
            RANK,
            BLOCK_K,
            BLOCK_C,
            BLOCK_R,
        )


@triton.jit
@no_type_check
def _write_of_a(
    x_ptr,
    keep_ptr,
    of_low_ptr,
    of_a_ptr,
    block,
    num_tokens,
    WIDTH_IN: tl.constexpr,
    RANK: tl.constexpr,
    DROPS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Write of_low^T drop(x), the gradient of A, for a block of its columns."""
    total = tl.zeros([BLOCK_R, BLOCK_W], tl.float32)
    for first in range(0, num_tokens, BLOCK_T):
        tokens = first + tl.arange(0, BLOCK_T)
        of_x, in_x = _offsets(tokens, block * BLOCK_W, num_tokens, WIDTH_IN, WIDTH_IN, BLOCK_W)
        x = tl.load(x_ptr + of_x, mask=in_x, other=0.0)
        if DROPS:
            x = tl.where(tl.load(keep_ptr + of_x, mask=in_x, other=0) != 0, x, 0.0).to(x.dtype)
        of_low, in_low = _offsets(tokens, 0, num_tokens, RANK, RANK, BLOCK_R)
        low = tl.load(of_low_ptr + of_low, mask=in_low, other=0.0)
        total = tl.dot(tl.trans(low), x, total, input_precision="ieee")
    ranks = tl.arange(0, BLOCK_R)
    target, inside = _offsets(ranks, block * BLOCK_W, RANK, WIDTH_IN, WIDTH_IN, BLOCK_W)
    tl.store(of_a_ptr + target, total.to(of_a_ptr.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _write_of_input(
    keep_ptr,
    of_low_ptr,
    first_a_ptr,
    second_a_ptr,
    third_a_ptr,
    of_frozen_ptr,
    of_input_ptr,
    block,
    num_tokens,
    NUM: tl.constexpr,
    WIDTH_IN: tl.constexpr,
    RANK: tl.constexpr,
    DROPS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Write the input's gradient, that of the adapters after dropout added, for a block."""
    num_column_blocks = tl.cdiv(WIDTH_IN, BLOCK_C)
    tokens = block // num_column_blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    first_column = block % num_column_blocks * BLOCK_C
    of_x, in_x = _offsets(tokens, first_column, num_tokens, WIDTH_IN, WIDTH_IN, BLOCK_C)
    of_low, in_low = _offsets(tokens, 0, num_tokens, RANK, RANK, BLOCK_R)
    ranks = tl.arange(0, BLOCK_R)
    of_a, in_a = _offsets(ranks, first_column, RANK, WIDTH_IN, WIDTH_IN, BLOCK_C)
    total = tl.load(of_frozen_ptr + of_x, mask=in_x, other=0.0).to(tl.float32)
    for number in tl.static_range(NUM):
        source = of_low_ptr + number * (num_tokens * RANK) + of_low
        low = tl.load(source, mask=in_low, other=0.0)
        a_ptr = _pick(number, first_a_ptr, second_a_ptr, third_a_ptr)
        a = tl.load(a_ptr + of_a, mask=in_a, other=0.0).to(low.dtype)
        through = tl.dot(low, a, input_precision="ieee")
        if DROPS:
            mask = keep_ptr + number * (num_tokens * WIDTH_IN) + of_x
            through = tl.where(tl.load(mask, mask=in_x, other=0) != 0, through, 0.0)
        total += through
    tl.store(of_input_ptr + of_x, total.to(of_input_ptr.dtype.element_ty), mask=in_x)


@triton.jit
@no_type_check
def backward_input_kernel(
    x_ptr,  # [K, width_in]
    keep_ptr,  # [NUM, K, width_in] int8
    of_low_ptr,  # [NUM, K, r]
    first_a_ptr,  # [r, width_in]
    second_a_ptr,
    third_a_ptr,
    of_a_ptr,  # [NUM, r, width_in]
    of_frozen_ptr,  # [K, width_in], what comes through the frozen projections
    of_input_ptr,  # [K, width_in]
    num_tokens,
    NUM: tl.constexpr,
    WIDTH_IN: tl.constexpr,
    RANK: tl.constexpr,
    DROPS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Write the gradients of A and of the input; the longer programs, A's, come first."""
    block = tl.program_id(0)
    num_a_blocks = NUM * tl.cdiv(WIDTH_IN, BLOCK_W)
    if block < num_a_blocks:
        number = block % NUM
        _write_of_a(
            x_ptr,
            keep_ptr + number * (num_tokens * WIDTH_IN),
            of_low_ptr + number * (num_tokens * RANK),
            of_a_ptr + number * (RANK * WIDTH_IN),
            block // NUM,
            num_tokens,
            WIDTH_IN,
            RANK,
            DROPS,
            BLOCK_T,
            BLOCK_W,
            BLOCK_R,
        )
    else:
        _write_of_input(
            keep_ptr,
            of_low_ptr,
            first_a_ptr,
            second_a_ptr,
            third_a_ptr,
            of_frozen_ptr,
            of_input_ptr,
            block - num_a_blocks,
            num_tokens,
            NUM,
            WIDTH_IN,
            RANK,
            DROPS,
            BLOCK_K,
            BLOCK_C,
            BLOCK_R,
        )
