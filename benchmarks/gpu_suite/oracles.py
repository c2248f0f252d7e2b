"""What losses, attention and ranks should give: the formulas in float64 NumPy, slowly.

Every argument is an array of NumPy in float64, or of integers or bools.
"""

from typing import Any

import numpy as np


def softmax(
    hidden_ND: Any, table_VD: Any, target_N: Any, weight_N: Any, is_candidate_NV: Any
) -> tuple[Any, Any, Any]:
    """Sum of the weighted cross-entropy, and its gradients to hidden and table."""
    number_N = np.arange(len(target_N))
    score_NV = np.where(is_candidate_NV, hidden_ND @ table_VD.T, -np.inf)
    highest_N1 = score_NV.max(axis=1, keepdims=True)
    share_NV = np.exp(score_NV - highest_N1)
    total_N1 = share_NV.sum(axis=1, keepdims=True)
    log_total_N = (highest_N1 + np.log(total_N1))[:, 0]
    loss = (weight_N * (log_total_N - score_NV[number_N, target_N])).sum()
    grad_NV = weight_N[:, None] * share_NV / total_N1
    grad_NV[number_N, target_N] -= weight_N
    return loss, grad_NV @ table_VD, grad_NV.T @ hidden_ND


def exponential_sums(rows: Any, columns: Any, *, width: int) -> tuple[Any, Any, Any]:
    """Of `score_kernel.sums`; and the sum of the sizes of the second's terms."""
    (left_NK, row_N, key_N), (right_VK, column_V, key_V) = rows, columns
    value_VD = right_VK[:, :width]
    score_NV = left_NK[:, :width] @ value_VD.T
    if left_NK.shape[1] > width:
        score_NV += left_NK[:, :width] @ right_VK[:, width:].T
        score_NV += left_NK[:, width:] @ value_VD.T
    term_NV = np.exp(score_NV + row_N[:, None] + column_V[None])
    term_NV[key_N[:, None] == key_V[None]] = 0
    return term_NV.sum(axis=1), term_NV @ value_VD, term_NV @ np.abs(value_VD)


def bce(
    hidden_ND: Any, table_VD: Any, target_N: Any, weight_N: Any, negative_NS: Any
) -> tuple[Any, Any, Any]:
    """The same of the binary cross-entropy, a mean over a target and its negatives."""
    num_negatives = negative_NS.shape[1]
    hidden_grad_ND, table_grad_VD = np.zeros_like(hidden_ND), np.zeros_like(table_VD)
    loss = 0.0
    for n, hidden_D in enumerate(hidden_ND):
        item_S = np.append(target_N[n], negative_NS[n])
        sign_S = np.append(-1.0, np.ones(num_negatives))
        score_S = sign_S * (table_VD[item_S] @ hidden_D)
        scale = weight_N[n] / (1 + num_negatives)
        loss += scale * np.logaddexp(0, score_S).sum()
        grad_S = scale * sign_S / (1 + np.exp(-score_S))
        hidden_grad_ND[n] = grad_S @ table_VD[item_S]
        np.add.at(table_grad_VD, item_S, grad_S[:, None] * hidden_D)
    return loss, hidden_grad_ND, table_grad_VD


def attention(
    query_RTHK: Any,
    key_RTHK: Any,
    value_RTHK: Any,
    segment_RT: Any,
    out_grad_RTHK: Any,
    *,
    is_causal: bool,
) -> tuple[Any, ...]:
    """Output and the gradients to all three, row by row and head by head."""
    found = [np.zeros(query_RTHK.shape) for _ in range(4)]
    num_rows, length, num_heads, width = query_RTHK.shape
    for r in range(num_rows):
        mask_TM = segment_RT[r][:, None] == segment_RT[r][None]
        if is_causal:
            mask_TM &= np.tri(length, dtype=bool)
        for h in range(num_heads):
            q, k, v, g = (
                x[r, :, h] for x in (query_RTHK, key_RTHK, value_RTHK, out_grad_RTHK)
            )
            score_TM = np.where(mask_TM, q @ k.T / np.sqrt(width), -np.inf)
            share_TM = np.exp(score_TM - score_TM.max(axis=1, keepdims=True))
            share_TM /= share_TM.sum(axis=1, keepdims=True)
            share_grad_TM = g @ v.T
            mean_T1 = (share_grad_TM * share_TM).sum(axis=1, keepdims=True)
            score_grad_TM = share_TM * (share_grad_TM - mean_T1) / np.sqrt(width)
            of_head = share_TM @ v, score_grad_TM @ k, score_grad_TM.T @ q
            for array, x in zip(found, (*of_head, share_TM.T @ g), strict=True):
                array[r, :, h] = x
    return tuple(found)


def ranks(
    hidden_BD: Any, table_VD: Any, target_B: Any, row_H: Any, item_H: Any
) -> np.ndarray:
    """Filtered and unfiltered ranks among the items 1..V - 1, user by user: int [2, B].

    Args:
      row_H, item_H: the items that a user has had, none of them the user's target.
    """
    found = []
    for b, (hidden_D, target) in enumerate(zip(hidden_BD, target_B, strict=True)):
        score_V = table_VD @ hidden_D
        at_least_V = score_V >= score_V[target]
        at_least_V[[0, target]] = False
        unfiltered = 1 + at_least_V.sum()
        at_least_V[item_H[row_H == b]] = False
        found.append((1 + at_least_V.sum(), unfiltered))
    return np.array(found).T
