//! Few examples, a wide network, and what each remedy does to the gap.

use burn::tensor::Tensor;

use crate::data::{Augment, ImageSet, Normalization, Split};
use crate::labs::training::{Trained, Training, all, augmented, glyph_set, labels, order, rows};
use crate::labs::{Chart, Claim, LabContext, LabError, Outcome, panels};
use crate::models::perceptron::{Perceptron, PerceptronConfig};
use crate::rng::{Stream, rng};
use crate::train::spec::OptimizerKind;
use crate::train::{Batch, Metrics, OptimizerSpec, Task};

const CLASSES: usize = 36;
const STEPS: u64 = 1000;
const BATCH: usize = 40;
const NORM: Normalization = Normalization::Symmetric;

/// What is done against overfitting.
#[derive(Default)]
struct Remedy {
    weight_decay: f32,
    dropout: f64,
    augment: Option<Augment>,
    patience: Option<u64>,
}

struct Sets {
    train: ImageSet,
    validation: ImageSet,
    test: ImageSet,
}

pub(super) fn run(lab: &LabContext<'_>) -> Result<Outcome, LabError> {
    let sets = Sets {
        // All three in the same fonts: the gap is then overfitting alone, not a change of fonts.
        train: glyph_set(Split::Train, lab.seed, CLASSES, 5)?,
        validation: glyph_set(Split::Train, lab.seed + 1, CLASSES, 20)?,
        test: glyph_set(Split::Train, lab.seed + 2, CLASSES, 50)?,
    };
    let shaken = Augment {
        shift: 2,
        rotate: 10.0,
        noise: 0.1,
        ..Augment::default()
    };
    let remedies = [
        ("nothing", Remedy::default()),
        (
            "weight decay",
            Remedy {
                weight_decay: 3.0,
                ..Remedy::default()
            },
        ),
        (
            "dropout",
            Remedy {
                dropout: 0.6,
                ..Remedy::default()
            },
        ),
        (
            "augmentation",
            Remedy {
                augment: Some(shaken),
                ..Remedy::default()
            },
        ),
        (
            "early stopping",
            Remedy {
                patience: Some(2),
                ..Remedy::default()
            },
        ),
    ];
    let mut gaps = Chart::new("Loss at the end", "", "test loss minus training loss, nats");
    let mut claims = Vec::new();
    let mut without = f64::NAN;
    let mut curves = Chart::new("Loss on unseen glyphs", "step", "nats");
    for (name, remedy) in remedies {
        lab.say(name);
        let trained = train(lab, &sets, &remedy)?;
        let gap = loss(lab, &trained.model, &sets.test) - loss(lab, &trained.model, &sets.train);
        gaps = gaps.bar(name, gap);
        curves = curves.line(
            name,
            trained
                .validations
                .iter()
                .map(|(step, m)| (*step as f64, m["loss"])),
        );
        if name == "nothing" {
            without = gap;
            claims.push(Claim::at_least(
                "nothing: gap between test and training loss, nats",
                gap,
                0.5,
            ));
        } else {
            let claim = format!("{name}: gap as a share of the gap with nothing");
            claims.push(Claim::at_most(claim, gap / without, 0.9));
        }
    }
    Ok(Outcome {
        claims,
        plot: panels(&[curves, gaps]),
        notes: vec![],
    })
}

fn train(
    lab: &LabContext<'_>,
    sets: &Sets,
    remedy: &Remedy,
) -> Result<Trained<Perceptron>, LabError> {
    let device = lab.device.clone().autodiff();
    let order = order(&sets.train, BATCH, lab.seed)?;
    let mut config = PerceptronConfig::new(sets.train.height * sets.train.width, 256, 2, CLASSES);
    config.dropout = remedy.dropout;
    let model = config.init(&mut rng(lab.seed, Stream::Init, 0), &device);

    let optimizer = OptimizerSpec {
        weight_decay: remedy.weight_decay,
        ..OptimizerSpec::new(OptimizerKind::AdamW, 1e-3)
    };
    let mut training = Training::new(optimizer, STEPS, BATCH, lab.seed);
    training.train.validate_every = Some(20);
    training.train.patience = remedy.patience;
    let none = Augment::default();
    let augment = remedy.augment.as_ref().unwrap_or(&none);
    let task = Task::new(
        |step| {
            let indices = order.indices(step);
            let x = augmented(
                &sets.train,
                &indices,
                &NORM,
                (augment, lab.seed, step),
                &device,
            );
            Ok(Batch::from((x, labels(&sets.train, &indices, &device))))
        },
        |model: &Perceptron, (x, y), _| model.loss(x, y).into(),
    )
    .validate(|model| {
        Ok(Metrics::from([(
            "loss".into(),
            loss(lab, model, &sets.validation),
        )]))
    });
    Ok(training.run(model, task, &device)?)
}

/// The loss on a whole set, as it is: no augmentation, no dropout.
fn loss(lab: &LabContext<'_>, model: &Perceptron, set: &ImageSet) -> f64 {
    let x: Tensor<2> = rows(set, &all(set), &NORM, &lab.device);
    f64::from(
        model
            .loss(x, labels(set, &all(set), &lab.device))
            .into_scalar::<f32>(),
    )
}
