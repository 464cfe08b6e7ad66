//! The fused attention against the same built of Burn's operators.

use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor, TensorData, Tolerance};
use maquette_kernels::{AttentionOptions, self_attention};

mod support;
use support::tensor;

/// The definition, one head at a time.
fn plain(qkv: Tensor<3>, options: AttentionOptions) -> Tensor<3> {
    let [_, seq, width] = qkv.dims();
    let AttentionOptions {
        n_heads,
        n_kv_heads,
        causal,
    } = options;
    let d_head = width / (n_heads + 2 * n_kv_heads);
    let slot = |slot: usize| qkv.clone().narrow(2, slot * d_head, d_head);
    let hidden = (0..seq * seq).map(|i| {
        if causal && i % seq > i / seq {
            -1e9f32
        } else {
            0.0
        }
    });
    let mask = TensorData::new(hidden.collect::<Vec<_>>(), [1, seq, seq]);
    let mask = Tensor::<3>::from_data(mask, &qkv.device());
    let heads = (0..n_heads).map(|head| {
        let shared = head / (n_heads / n_kv_heads);
        let scores = slot(head).matmul(slot(n_heads + shared).swap_dims(1, 2));
        let weights = softmax(scores / (d_head as f64).sqrt() + mask.clone(), 2);
        weights.matmul(slot(n_heads + n_kv_heads + shared))
    });
    Tensor::cat(heads.collect(), 2)
}

fn run(shape: [usize; 3], options: AttentionOptions, fused: bool) -> [TensorData; 2] {
    let device = Device::flex().autodiff();
    let leaf = (tensor([shape[1], shape[0], shape[2]], 1, &device) * 2.0).require_grad();
    let qkv = leaf.clone().swap_dims(0, 1);
    let out = if fused {
        self_attention(qkv, options)
    } else {
        plain(qkv, options)
    };
    let grads = (out.clone() * tensor(out.dims(), 2, &device))
        .sum()
        .backward();
    [
        out.into_data(),
        leaf.grad(&grads).expect("tracked").into_data(),
    ]
}

#[test]
fn agrees_with_the_definition() {
    // [batch, seq, d_head], query heads, key heads
    let cases = [
        ([1, 1, 1], 1, 1),
        ([2, 7, 3], 2, 2),
        ([3, 64, 32], 4, 4),
        ([2, 65, 8], 6, 2),
        ([1, 200, 16], 3, 1),
    ];
    for ([batch, seq, d_head], n_heads, n_kv_heads) in cases {
        for causal in [true, false] {
            let options = AttentionOptions {
                n_heads,
                n_kv_heads,
                causal,
            };
            let shape = [batch, seq, (n_heads + 2 * n_kv_heads) * d_head];
            for (fused, plain) in run(shape, options, true)
                .iter()
                .zip(run(shape, options, false))
            {
                assert_eq!(fused.shape(), plain.shape(), "{shape:?} {options:?}");
                fused.assert_approx_eq::<f32>(&plain, Tolerance::rel_abs(1e-4, 1e-5));
            }
        }
    }
}

#[test]
fn does_not_depend_on_the_number_of_threads() {
    let options = AttentionOptions {
        n_heads: 4,
        n_kv_heads: 2,
        causal: true,
    };
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("threads");
        pool.install(|| run([3, 90, 64], options, true))
    };
    assert_eq!(on(1), on(3));
}

#[test]
#[should_panic(expected = "a width of 20 is not 6 heads")]
fn names_a_width_that_is_not_whole_heads() {
    let options = AttentionOptions {
        n_heads: 2,
        n_kv_heads: 2,
        causal: true,
    };
    self_attention(tensor([1, 2, 20], 1, &Device::flex()), options);
}
