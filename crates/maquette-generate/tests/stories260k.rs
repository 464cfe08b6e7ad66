//! A published model, read from the format it was published in, says what was published.
//!
//! `../shared/data/stories260k` has the file, or `MAQUETTE_TEST_DATA/stories260k`.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use maquette_generate::{
    engine::{Engine, EngineOptions, Event, Request, Speculation, Weights},
    sampling::{Decoding, TokenSampler},
    text::{generate_ids, token_model},
};
use maquette_models::gguf::{self, Format, Metadata, Mix};
use maquette_models::{hf, llama2c};
use maquette_rng::{Stream, rng};

/// The text that doc/stories260K.md of llama2.c prints for temperature zero, in tokens: encoded by
/// the rule of llama2.c's `encode` with the vocabulary `tok512.bin`.
const PUBLISHED: [u32; 256] = [
    403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426, 338, 401, 396, 267,
    337, 410, 408, 419, 292, 411, 322, 265, 282, 295, 433, 426, 385, 328, 432, 358, 394, 261, 370,
    432, 352, 266, 268, 388, 426, 338, 391, 266, 267, 337, 335, 312, 432, 398, 312, 286, 267, 414,
    270, 333, 415, 426, 13, 438, 310, 439, 419, 357, 336, 432, 313, 438, 310, 432, 278, 316, 439,
    419, 298, 414, 267, 265, 282, 295, 433, 426, 436, 317, 286, 296, 418, 269, 279, 292, 416, 439,
    413, 409, 416, 327, 263, 415, 294, 267, 400, 426, 338, 336, 432, 313, 442, 391, 267, 337, 335,
    364, 420, 268, 388, 432, 398, 359, 280, 303, 439, 413, 272, 417, 264, 312, 426, 436, 13, 438,
    310, 286, 296, 418, 269, 279, 292, 416, 439, 413, 409, 416, 327, 263, 415, 294, 267, 400, 426,
    338, 336, 432, 313, 442, 439, 423, 262, 304, 420, 422, 432, 317, 426, 359, 279, 292, 416, 439,
    413, 409, 416, 327, 263, 415, 294, 267, 400, 426, 436, 13, 438, 310, 279, 292, 416, 439, 413,
    391, 267, 281, 421, 427, 311, 357, 432, 384, 358, 336, 432, 313, 442, 439, 423, 262, 304, 420,
    422, 432, 357, 426, 359, 279, 292, 416, 439, 413, 409, 416, 327, 263, 415, 294, 267, 400, 426,
    436, 320, 285, 357, 336, 432, 313, 455, 289, 439, 413, 263, 304, 420, 422, 432, 317, 426, 410,
    448, 411, 280, 303, 281, 421, 427, 364, 426,
];

fn file() -> Option<PathBuf> {
    let root = std::env::var_os("MAQUETTE_TEST_DATA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"),
        PathBuf::from,
    );
    let file = root.join("stories260k/stories260K.bin");
    if !file.exists() {
        eprintln!("skipped: {} is not there", file.display());
        return None;
    }
    Some(file)
}

#[test]
fn greedy_text_is_the_published_one() {
    let Some(file) = file() else { return };
    let device = Device::flex();
    let (config, model) = llama2c::load(&file, &device).unwrap();
    let folder = tempfile::tempdir().unwrap();
    hf::save(folder.path(), &config, &model).unwrap();
    let (_, again) = hf::load(folder.path(), &device).unwrap();
    for model in [model, again] {
        let greedy = Decoding {
            temperature: 0.0,
            ..Decoding::default()
        };
        let random = &mut rng(0, Stream::Sample, 0);
        let go_on = |_| Ok(ControlFlow::Continue(()));
        let n = PUBLISHED.len();
        let ids = generate_ids(&mut token_model(&model), &[1], n, &greedy, random, go_on).unwrap();
        assert_eq!(ids, PUBLISHED);
    }
}

#[test]
fn the_engine_writes_it_from_every_kind_of_file() {
    let Some(file) = file() else { return };
    let (config, model) = llama2c::load(&file, &Device::flex()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    hf::save(dir.path(), &config, &model).unwrap();
    let gguf = dir.path().join("model.gguf");
    let mix = Mix::All(Format::F32);
    gguf::save(&gguf, &config, &model, mix, Metadata::new()).unwrap();
    let weights = [
        Weights::of(&config, &model),
        Weights::open(dir.path()).unwrap(),
        Weights::open(&gguf).unwrap(),
    ];
    for weights in weights {
        let mut engine = Engine::new(weights, EngineOptions::default());
        let ask = |speculation| Request {
            max_tokens: PUBLISHED.len(),
            speculation,
            ..Request::new(
                TokenSampler::new(Decoding::greedy(), &[1]).unwrap(),
                rng(0, Stream::Sample, 0),
            )
        };
        let handles = [Speculation::Off, Speculation::Lookup(6)]
            .map(|speculation| engine.submit(ask(speculation)).unwrap());
        let mut texts = [Vec::new(), Vec::new()];
        while engine.is_busy() {
            for event in engine.step() {
                if let Event::Token { request, token } = event {
                    texts[usize::from(request == handles[1].id())].push(token.id);
                }
            }
        }
        assert_eq!(texts, [PUBLISHED, PUBLISHED]);
    }
}
