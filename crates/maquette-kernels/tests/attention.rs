//! The fused attention against the same built of Burn's operators.

use burn::tensor::activation::softmax;
use burn::tensor::{Device, FloatDType, Tensor, TensorData, Tolerance};
use maquette_kernels::{AttentionOptions, Dropout, Precision, autocast, self_attention};

mod support;
use support::tensor;

/// The definition, one head at a time.
fn plain(qkv: Tensor<3>, options: AttentionOptions) -> Tensor<3> {
    let [_, seq, width] = qkv.dims();
    let AttentionOptions {
        n_heads,
        n_kv_heads,
        causal,
        window,
        ..
    } = options;
    let d_head = width / (n_heads + 2 * n_kv_heads);
    let slot = |slot: usize| qkv.clone().narrow(2, slot * d_head, d_head);
    let hidden = (0..seq * seq).map(|i| {
        let (query, key) = (i / seq, i % seq);
        let past = window.is_some_and(|window| key + window <= query);
        if causal && key > query || past {
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

/// [batch, seq, d_head], query heads, key heads
const SIZES: [([usize; 3], usize, usize); 5] = [
    ([1, 1, 1], 1, 1),
    ([2, 7, 3], 2, 2),
    ([3, 64, 32], 4, 4),
    ([2, 65, 8], 6, 2),
    ([1, 200, 16], 3, 1),
];

/// Every size with every pattern.
fn cases() -> impl Iterator<Item = ([usize; 3], AttentionOptions)> {
    SIZES
        .into_iter()
        .flat_map(|([batch, seq, d_head], n_heads, n_kv_heads)| {
            let causal = AttentionOptions::causal(n_heads, n_kv_heads);
            let window = |window| AttentionOptions {
                window: Some(window),
                ..causal
            };
            let full = AttentionOptions::full(n_heads, n_kv_heads);
            let shape = [batch, seq, (n_heads + 2 * n_kv_heads) * d_head];
            [causal, full, window(1), window(5), window(100)].map(|options| (shape, options))
        })
}

#[test]
fn agrees_with_the_definition() {
    for (shape, options) in cases() {
        for (fused, plain) in run(shape, options, true)
            .iter()
            .zip(run(shape, options, false))
        {
            assert_eq!(fused.shape(), plain.shape(), "{shape:?} {options:?}");
            fused.assert_approx_eq::<f32>(&plain, Tolerance::rel_abs(1e-4, 1e-5));
        }
    }
}

/// Euclidean norm of the difference over that of the numbers.
fn relative(a: &TensorData, b: &TensorData) -> f64 {
    let pairs = || a.iter::<f64>().zip(b.iter::<f64>());
    let square: f64 = pairs().map(|(a, b)| (a - b).powi(2)).sum();
    (square / pairs().map(|(_, b)| b.powi(2)).sum::<f64>().max(1e-12)).sqrt()
}

#[test]
fn bf16_is_within_its_rounding() {
    for (shape, options) in cases().filter(|(shape, _)| shape[1] > 1) {
        let exact = run(shape, options, true);
        let guard = autocast(Precision::Bf16);
        let rounded = run(shape, options, true);
        drop(guard);
        assert_ne!(exact, rounded, "nothing was rounded");
        for (rounded, exact) in rounded.iter().zip(&exact) {
            let error = relative(rounded, exact);
            assert!(error < 0.02, "{error}: {shape:?} {options:?}");
        }
    }
}

/// With dropout the composed form, which 64-bit floats take, has the same mask.
#[test]
fn drops_what_the_composed_form_drops() {
    for (shape, options) in cases() {
        let options = AttentionOptions {
            dropout: Some(Dropout {
                probability: 0.3,
                key: 11,
            }),
            ..options
        };
        let on = |wide: bool| {
            let device = Device::flex().autodiff();
            let leaf = (tensor(shape, 1, &device) * 2.0).require_grad();
            let qkv = match wide {
                true => leaf.clone().cast(FloatDType::F64),
                false => leaf.clone(),
            };
            let out = self_attention(qkv, options).cast(FloatDType::F32);
            let grads = (out.clone() * tensor(out.dims(), 2, &device))
                .sum()
                .backward();
            [
                out.into_data(),
                leaf.grad(&grads).expect("tracked").into_data(),
            ]
        };
        for (fused, composed) in on(false).iter().zip(on(true)) {
            fused.assert_approx_eq::<f32>(&composed, Tolerance::rel_abs(1e-4, 1e-5));
        }
    }
}

#[test]
fn gradients_match_finite_differences() {
    let options = AttentionOptions {
        window: Some(6),
        dropout: Some(Dropout {
            probability: 0.2,
            key: 3,
        }),
        ..AttentionOptions::causal(4, 2)
    };
    let shape = [1, 9, 8 * 3];
    let device = Device::flex();
    let exact = run(shape, options, true);
    let x = (tensor([9, 1, 24], 1, &device) * 2.0).swap_dims(0, 1);
    let loss = |x: Tensor<3>| {
        let out = self_attention(x, options);
        let shape = out.dims();
        (out * tensor(shape, 2, &device)).sum().into_scalar::<f32>()
    };
    for index in (0..9 * 24).step_by(13) {
        let at = [0..1, index / 24..index / 24 + 1, index % 24..index % 24 + 1];
        let shifted = |by: f32| {
            let moved = x.clone().slice(at.clone()) + by;
            loss(x.clone().slice_assign(at.clone(), moved))
        };
        let numeric = (shifted(1e-2) - shifted(-1e-2)) / 2e-2;
        let exact = exact[1].iter::<f32>().nth(index).expect("inside");
        assert!((numeric - exact).abs() < 2e-3, "{numeric} against {exact}");
    }
}

#[test]
fn does_not_depend_on_the_number_of_threads() {
    let options = AttentionOptions {
        dropout: Some(Dropout {
            probability: 0.2,
            key: 3,
        }),
        ..AttentionOptions::causal(4, 2)
    };
    for precision in [Precision::F32, Precision::Bf16] {
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("threads").install(|| {
                let _guard = autocast(precision);
                run([3, 90, 64], options, true)
            })
        };
        assert_eq!(on(1), on(3));
    }
}

#[test]
#[should_panic(expected = "a width of 20 is not 6 heads")]
fn names_a_width_that_is_not_whole_heads() {
    let options = AttentionOptions::causal(2, 2);
    self_attention(tensor([1, 2, 20], 1, &Device::flex()), options);
}
