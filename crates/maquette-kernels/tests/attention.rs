//! The fused attention against the same built of Burn's operators.

use burn::tensor::activation::softmax;
use burn::tensor::{Device, FloatDType, Tensor, TensorData, Tolerance};
use maquette_kernels::{
    AttentionOptions, Dropout, Precision, attention, autocast, rotary, self_attention,
};

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

/// Queries of the last positions, all keys, all values: output and the three gradients. Everything
/// lies in memory as a projection split into heads does.
fn run_apart(
    [batch, queries, keys, d_head]: [usize; 4],
    options: AttentionOptions,
    fused: bool,
) -> Vec<TensorData> {
    let device = Device::flex().autodiff();
    let AttentionOptions {
        n_heads,
        n_kv_heads,
        ..
    } = options;
    let leaves = [(queries, n_heads), (keys, n_kv_heads), (keys, n_kv_heads)];
    let leaves: Vec<Tensor<3>> = (1..)
        .zip(leaves)
        .map(|(salt, (seq, heads))| {
            (tensor([batch, seq, heads * d_head + 2], salt, &device) * 2.0).require_grad()
        })
        .collect();
    let split = |leaf: &Tensor<3>, heads: usize| {
        let [batch, seq, _] = leaf.dims();
        let part = leaf.clone().narrow(2, 1, heads * d_head);
        part.reshape([batch, seq, heads, d_head]).swap_dims(1, 2)
    };
    let [q, k, v] = [0, 1, 2].map(|i| split(&leaves[i], [n_heads, n_kv_heads, n_kv_heads][i]));
    let out = match fused {
        true => attention(q, k, v, options),
        false => plain_apart(q, k, v, options),
    };
    assert_eq!(out.dims(), [batch, n_heads, queries, d_head]);
    let grads = (out.clone() * tensor(out.dims(), 4, &device))
        .sum()
        .backward();
    let gradients = leaves.iter().map(|leaf| leaf.grad(&grads));
    std::iter::once(out.into_data())
        .chain(gradients.map(|gradient| gradient.expect("tracked").into_data()))
        .collect()
}

/// The definition, one head at a time.
fn plain_apart(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, options: AttentionOptions) -> Tensor<4> {
    let [_, n_heads, queries, d_head] = q.dims();
    let keys = k.dims()[2];
    let hidden = (0..queries * keys).map(|i| {
        let (position, key) = (i / keys + keys - queries, i % keys);
        let past = options
            .window
            .is_some_and(|window| key + window <= position);
        if options.causal && key > position || past {
            -1e9f32
        } else {
            0.0
        }
    });
    let mask = TensorData::new(hidden.collect::<Vec<_>>(), [1, 1, queries, keys]);
    let mask = Tensor::<4>::from_data(mask, &q.device());
    let scale = options.scale.unwrap_or((d_head as f32).sqrt().recip());
    let heads = (0..n_heads).map(|head| {
        let shared = head * options.n_kv_heads / n_heads;
        let scores = q.clone().narrow(1, head, 1);
        let scores = scores.matmul(k.clone().narrow(1, shared, 1).swap_dims(2, 3));
        softmax(scores * scale + mask.clone(), 3).matmul(v.clone().narrow(1, shared, 1))
    });
    Tensor::cat(heads.collect(), 1)
}

/// `[batch, queries, keys, d_head]`, query heads, key heads: decoding, continuing, and all at once.
const APART: [([usize; 4], usize, usize); 6] = [
    ([1, 1, 1, 1], 1, 1),
    ([2, 1, 70, 8], 4, 2),
    ([2, 5, 9, 3], 6, 2),
    ([1, 70, 200, 16], 2, 1),
    ([3, 64, 64, 32], 4, 4),
    ([1, 130, 131, 5], 3, 3),
];

#[test]
fn queries_apart_from_keys_agree_with_the_definition() {
    for (shape, n_heads, n_kv_heads) in APART {
        let causal = AttentionOptions::causal(n_heads, n_kv_heads);
        let windowed = AttentionOptions {
            window: Some(7),
            scale: Some(0.3),
            ..causal
        };
        let full = AttentionOptions::full(n_heads, n_kv_heads);
        for options in [causal, windowed, full] {
            let plain = run_apart(shape, options, false);
            for (fused, plain) in run_apart(shape, options, true).iter().zip(plain) {
                fused.assert_approx_eq::<f32>(&plain, Tolerance::rel_abs(1e-4, 2e-5));
            }
        }
    }
    // More queries than keys, which only attention to everything has.
    let options = AttentionOptions::full(2, 1);
    let plain = run_apart([2, 9, 4, 8], options, false);
    for (fused, plain) in run_apart([2, 9, 4, 8], options, true).iter().zip(plain) {
        fused.assert_approx_eq::<f32>(&plain, Tolerance::rel_abs(1e-4, 2e-5));
    }
}

#[test]
fn the_last_queries_alone_get_what_they_get_among_all() {
    let options = AttentionOptions {
        window: Some(30),
        ..AttentionOptions::causal(4, 2)
    };
    let device = Device::flex();
    let q = tensor([2, 4, 90, 16], 1, &device);
    let (k, v) = (
        tensor([2, 2, 90, 16], 2, &device),
        tensor([2, 2, 90, 16], 3, &device),
    );
    let all = attention(q.clone(), k.clone(), v.clone(), options);
    let some = attention(q.narrow(2, 83, 7), k, v, options);
    some.into_data().assert_approx_eq::<f32>(
        &all.narrow(2, 83, 7).into_data(),
        Tolerance::rel_abs(1e-5, 1e-6),
    );
}

#[test]
fn gradients_apart_match_finite_differences() {
    let options = AttentionOptions {
        window: Some(6),
        dropout: Some(Dropout {
            probability: 0.2,
            key: 3,
        }),
        ..AttentionOptions::causal(4, 2)
    };
    let device = Device::flex();
    let shapes = [[1, 4, 5, 3], [1, 2, 8, 3], [1, 2, 8, 3]];
    let on = |device: &Device| [0, 1, 2].map(|i| tensor(shapes[i], i as u64 + 1, device) * 2.0);
    let loss = |[q, k, v]: [Tensor<4>; 3]| {
        let out = attention(q, k, v, options);
        let weights = tensor(out.dims(), 4, &out.device());
        (out * weights).sum()
    };
    let tracked = on(&device.clone().autodiff()).map(|x| x.require_grad());
    let grads = loss(tracked.clone()).backward();
    for (which, x) in tracked.iter().enumerate() {
        let gradient = x.grad(&grads).expect("tracked").into_data();
        let at = |index: usize| {
            let [_, _, rows, cols] = shapes[which];
            let (head, row) = (index / (rows * cols), index / cols % rows);
            [
                0..1,
                head..head + 1,
                row..row + 1,
                index % cols..index % cols + 1,
            ]
        };
        for index in (0..shapes[which].iter().product()).step_by(5) {
            let shifted = |by: f32| {
                let mut inputs = on(&device);
                let x = inputs[which].clone();
                let moved = x.clone().slice(at(index)) + by;
                inputs[which] = x.slice_assign(at(index), moved);
                loss(inputs).into_scalar::<f32>()
            };
            let numeric = (shifted(1e-2) - shifted(-1e-2)) / 2e-2;
            let exact = gradient.iter::<f32>().nth(index).expect("inside");
            assert!((numeric - exact).abs() < 2e-3, "{numeric} against {exact}");
        }
    }
}

#[test]
#[should_panic(expected = "9 causal queries at the last positions of 4 keys")]
fn names_causal_queries_without_keys() {
    let device = Device::flex();
    let kv = tensor([1, 1, 4, 8], 1, &device);
    let options = AttentionOptions::causal(1, 1);
    attention(tensor([1, 1, 9, 8], 1, &device), kv.clone(), kv, options);
}

/// The rotation, `[batch, seq, slots, d_head]` of which some heads and pairs turn.
#[test]
fn rotation_agrees_with_its_definition() {
    for (shape, heads, half) in [
        ([1, 1, 1, 2], 1, 1),
        ([2, 7, 5, 6], 3, 3),
        ([3, 70, 6, 64], 4, 32),
        ([2, 5, 3, 10], 3, 2),
        ([2, 4, 3, 8], 0, 4),
    ] {
        let run = |fused: bool| {
            let device = Device::flex().autodiff();
            let [batch, seq, slots, d_head] = shape;
            // Not contiguous.
            let leaf = tensor([seq, batch, slots, d_head], 1, &device).require_grad();
            let x = leaf.clone().swap_dims(0, 1);
            let angles = tensor([seq, half], 2, &device) * 3.0;
            let (cos, sin) = (angles.clone().cos(), angles.sin());
            let out = match fused {
                true => rotary(x, cos, sin, heads),
                false => {
                    let [cos, sin] = [cos, sin].map(|table| table.cast(FloatDType::F64));
                    rotary(x.cast(FloatDType::F64), cos, sin, heads).cast(FloatDType::F32)
                }
            };
            let grads = (out.clone() * tensor(shape, 3, &device)).sum().backward();
            [
                out.into_data(),
                leaf.grad(&grads).expect("tracked").into_data(),
            ]
        };
        for (fused, plain) in run(true).iter().zip(run(false)) {
            fused.assert_approx_eq::<f32>(&plain, Tolerance::rel_abs(1e-5, 1e-6));
        }
    }
}

#[test]
fn rotation_keeps_lengths_and_its_gradient_is_the_slope() {
    let device = Device::flex();
    let x = tensor([2, 3, 4, 6], 1, &device).autodiff().require_grad();
    let angles = tensor([3, 3], 2, &device);
    let turn = |x: Tensor<4>| rotary(x, angles.clone().cos(), angles.clone().sin(), 3);
    let length = |x: Tensor<4>| x.square().sum().into_scalar::<f32>();
    let (before, after) = (length(x.clone().inner()), length(turn(x.clone().inner())));
    assert!((before - after).abs() < 1e-4 * before);
    // Linear: a whole step is as good as a small one.
    let weights = tensor([2, 3, 4, 6], 3, &device);
    let angles_tracked = angles.clone().autodiff();
    let out = rotary(
        x.clone(),
        angles_tracked.clone().cos(),
        angles_tracked.sin(),
        3,
    );
    let grads = (out * weights.clone().autodiff()).sum().backward();
    let step = tensor([2, 3, 4, 6], 4, &device);
    let loss = |x: Tensor<4>| (turn(x) * weights.clone()).sum().into_scalar::<f32>();
    let slope = loss(x.clone().inner() + step.clone()) - loss(x.clone().inner());
    let expected = (x.grad(&grads).expect("tracked") * step)
        .sum()
        .into_scalar::<f32>();
    assert!((slope - expected).abs() < 1e-3, "{slope} {expected}");
}
