//! Dropout: how often it zeroes, what it keeps, and that its gradient has the same mask.

use burn::tensor::{Device, Tensor, TensorData, Tolerance};
use maquette_kernels::{Dropout, dropout};

mod support;
use support::tensor;

fn values(data: &TensorData) -> Vec<f32> {
    data.iter::<f32>().collect()
}

#[test]
fn zeroes_as_often_as_asked_and_keeps_the_mean() {
    let x = Tensor::<2>::ones([1000, 1000], &Device::flex());
    for probability in [0.1, 0.2, 0.5, 0.9] {
        let options = Dropout {
            probability,
            key: 7,
        };
        let out = values(&dropout(x.clone(), None, options).into_data());
        let zeroed = out.iter().filter(|x| **x == 0.0).count() as f64 / 1e6;
        // Four standard deviations of a million draws.
        let bound = 4e-3 * (probability * (1.0 - probability)).sqrt();
        assert!(
            (zeroed - probability).abs() < bound,
            "{zeroed} of {probability}"
        );
        let mean = out.iter().map(|x| f64::from(*x)).sum::<f64>() / 1e6;
        assert!(
            (mean - 1.0).abs() < 5.0 * bound / (1.0 - probability),
            "{mean}"
        );
        // Neighbours are independent: both zero as often as the square says.
        let both = out
            .windows(2)
            .filter(|pair| pair[0] == 0.0 && pair[1] == 0.0);
        let both = both.count() as f64 / 1e6;
        assert!((both - probability * probability).abs() < 3e-3, "{both}");
    }
}

#[test]
fn is_a_function_of_the_key() {
    let x = tensor([77, 300], 1, &Device::flex());
    let on = |key| {
        let options = Dropout {
            probability: 0.3,
            key,
        };
        dropout(x.clone(), None, options).into_data()
    };
    assert_eq!(on(1), on(1));
    assert_ne!(on(1), on(2));
    assert_ne!(on(1), on(1 << 40));
}

/// Output and gradients of input and residual.
fn run(shape: [usize; 2], residual: bool, threads: usize) -> Vec<TensorData> {
    let device = Device::flex().autodiff();
    let x = tensor([shape[1], shape[0]], 1, &device).require_grad();
    let other = residual.then(|| tensor(shape, 2, &device).require_grad());
    let options = Dropout {
        probability: 0.25,
        key: 9,
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.expect("threads").install(|| {
        let out = dropout(x.clone().swap_dims(0, 1), other.clone(), options);
        let grads = (out.clone() * tensor(shape, 3, &device)).sum().backward();
        let mut results = vec![out.into_data()];
        results.push(x.grad(&grads).expect("tracked").swap_dims(0, 1).into_data());
        results.extend(other.map(|other| other.grad(&grads).expect("tracked").into_data()));
        results
    })
}

#[test]
fn gradients_have_the_mask_of_the_output() {
    for shape in [[1, 1], [3, 5], [129, 1000]] {
        let ones = Tensor::<2>::ones(shape, &Device::flex());
        let options = Dropout {
            probability: 0.25,
            key: 9,
        };
        let mask = dropout(ones, None, options);
        let device = Device::flex();
        let x = tensor([shape[1], shape[0]], 1, &device).swap_dims(0, 1);
        let upstream: Tensor<2> = tensor(shape, 3, &device);
        for residual in [false, true] {
            let results = run(shape, residual, 1);
            assert_eq!(results, run(shape, residual, 3));
            let mut out = x.clone() * mask.clone();
            if residual {
                out = out + tensor(shape, 2, &device);
                assert_eq!(results[2], upstream.clone().into_data());
            }
            let tolerance = Tolerance::<f32>::rel_abs(1e-6, 1e-6);
            results[0].assert_approx_eq(&out.into_data(), tolerance);
            results[1].assert_approx_eq(&(upstream.clone() * mask.clone()).into_data(), tolerance);
        }
    }
}

#[test]
#[should_panic(expected = "a probability of 1 is not in [0, 1)")]
fn refuses_to_drop_everything() {
    let options = Dropout {
        probability: 1.0,
        key: 0,
    };
    dropout(tensor([2, 2], 1, &Device::flex()), None, options);
}
