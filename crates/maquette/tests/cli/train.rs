//! Training, resuming, and what a run leaves.

use std::fs;

use crate::common::{Bench, TINY_GPT};
use maquette::generate::image::{Picture, encode_png};

#[test]
fn train_evaluate_generate() {
    let bench = Bench::new();
    let trained = bench
        .run("train tiny.toml --out run --json")
        .succeeds()
        .json();
    assert_eq!(trained["run"], "run");
    assert_eq!(trained["steps"], 12);
    let loss = trained["metrics"]["validation_loss"].as_f64().unwrap();
    for file in [
        "recipe.toml",
        "metrics.jsonl",
        "report.html",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
    ] {
        assert!(bench.path("run").join(file).is_file(), "{file}");
    }

    let evaluated = bench.run("evaluate run --json").succeeds().json();
    assert_eq!(
        evaluated["metrics"]["validation_loss"].as_f64().unwrap(),
        loss
    );
    bench
        .run("evaluate run --metrics bleu")
        .fails(1, &["no metric `bleu`", "validation_loss"]);

    let made = bench
        .run("generate run --prompt Once --max-tokens 12 -n 2 --seed 3 --json")
        .succeeds()
        .json();
    assert_eq!(made["outputs"].as_array().unwrap().len(), 2);
    let again = bench
        .run("generate run --prompt Once --max-tokens 12 -n 2 --seed 3 --json")
        .succeeds()
        .json();
    assert_eq!(made, again);
}

#[test]
fn the_same_seed_gives_the_same_weights_and_another_gives_others() {
    let bench = Bench::new();
    bench.run("train tiny.toml --out a -q").succeeds();
    bench.run("train tiny.toml --out b -q").succeeds();
    bench.run("train tiny.toml --out c -q --seed 9").succeeds();
    bench
        .run("train tiny.toml --out one -q --threads 1")
        .succeeds();
    assert_eq!(
        bench.weights("a"),
        bench.weights("one"),
        "whatever the number of threads"
    );
    assert_eq!(bench.weights("a"), bench.weights("b"));
    assert_ne!(bench.weights("a"), bench.weights("c"));
}

#[test]
fn a_resumed_run_ends_in_the_same_bytes() {
    let bench = Bench::new();
    bench.run("train tiny.toml --out whole -q").succeeds();
    bench.run("train tiny.toml --out cut -q").succeeds();
    bench.cut_after_the_first_checkpoint("cut");
    bench.run("train --resume cut -q").succeeds();
    assert_eq!(bench.weights("whole"), bench.weights("cut"));
    let lines = |run: &str| {
        fs::read_to_string(bench.path(run).join("metrics.jsonl"))
            .unwrap()
            .lines()
            .count()
    };
    assert_eq!(lines("whole"), lines("cut"), "no record twice");
}

/// A folder of small pictures: `part/class/n.png`.
fn picture_folder(bench: &Bench, folder: &str, parts: &[(&str, usize)]) {
    for (part, count) in parts {
        for i in 0..*count {
            let class = ["dark", "light"][i % 2];
            let pixels: Vec<u8> = (0..64)
                .map(|at| (at * (i + 1) % 100 + i % 2 * 150) as u8)
                .collect();
            let picture = Picture::new(8, 8, 1, pixels).unwrap();
            let picture = encode_png(&picture, &[]).unwrap();
            bench.write(&format!("{folder}/{part}/{class}/{i}.png"), picture);
        }
    }
}

#[test]
fn a_folder_of_pictures_is_streamed_and_resumed_where_it_was() {
    let bench = Bench::new();
    picture_folder(&bench, "pictures", &[("train", 60), ("test", 10)]);
    let train = "train vae-mnist --data pictures --set data.streaming=true --set data.shuffle_buffer=16 \
                 --set train.batch=8 --steps 12 --set train.checkpoint_every=4 -q";
    bench.run(&format!("{train} --out whole")).succeeds();
    bench.run(&format!("{train} --out cut")).succeeds();
    bench.cut_after_the_first_checkpoint("cut");
    bench.run("train --resume cut -q").succeeds();
    assert_eq!(bench.weights("whole"), bench.weights("cut"));

    // Classes are folders, and both parts must have the same.
    fs::rename(
        bench.path("pictures/test/light"),
        bench.path("pictures/test/bright"),
    )
    .unwrap();
    bench
        .run(&format!("{train} --out other"))
        .fails(1, &["other classes", "bright", "light"]);
    fs::remove_dir_all(bench.path("pictures/test")).unwrap();
    bench
        .run(&format!("{train} --out none"))
        .fails(1, &["test"]);
}

#[test]
fn one_thread_is_enough() {
    let bench = Bench::new();
    bench.write("pictures.toml", TINY_PICTURES);
    let train = "train pictures.toml --steps 3 --threads 1";
    bench.run(&format!("{train} --out run")).succeeds();
}

#[test]
fn bf16_is_part_of_the_recipe_and_resumes_in_the_same_bytes() {
    let bench = Bench::new();
    let bf16 = "--set train.precision=bf16";
    bench.run("train tiny.toml --out exact -q").succeeds();
    bench
        .run(&format!("train tiny.toml --out whole -q {bf16}"))
        .succeeds();
    assert_ne!(bench.weights("exact"), bench.weights("whole"));
    let recipe = fs::read_to_string(bench.path("whole/recipe.toml")).unwrap();
    assert!(recipe.contains("precision = \"bf16\""), "{recipe}");
    bench
        .run(&format!("train tiny.toml --out cut -q {bf16}"))
        .succeeds();
    bench.cut_after_the_first_checkpoint("cut");
    bench.run("train --resume cut -q").succeeds();
    assert_eq!(bench.weights("whole"), bench.weights("cut"));
    bench
        .run("train tiny.toml --set train.precision=fp8")
        .fails(2, &["train.precision", "fp8", "bf16"]);
}

#[test]
fn a_learning_rate_that_diverges_is_named() {
    let bench = Bench::new();
    bench
        .run("train tiny.toml --out run --set optimizer.lr=1e9 --set train.steps=200")
        .fails(1, &["diverged", "step", "optimizer.lr"]);
}

#[test]
fn a_dry_run_says_what_training_would_take() {
    let bench = Bench::new();
    let plan = bench
        .run("train tiny.toml --dry-run --json")
        .succeeds()
        .json();
    assert!(plan["parameters"].as_u64().unwrap() > 1000);
    assert!(plan["seconds_per_step"].as_f64().unwrap() > 0.0);
    assert!(
        plan["recipe"]
            .as_str()
            .unwrap()
            .contains("grad_accumulation")
    );
    assert!(!bench.path("runs").exists());
}

#[test]
fn experts_are_trained_and_their_load_is_told() {
    let bench = Bench::new();
    let recipe = TINY_GPT.replace(
        "d_model = 16",
        "d_model = 16\nbias = false\ntied_head = false\npositions = \"rotary\"\nnorm = \"rms-norm\"\n\
         mlp = \"swiglu\"\nexperts = { count = 3, active = 2 }",
    );
    bench.write("experts.toml", &recipe);
    let json = bench
        .run("train experts.toml --json --out run")
        .succeeds()
        .json();
    let used = json["metrics"]["validation_experts_used"].as_f64().unwrap();
    assert!(0.0 < used && used <= 1.0 + 1e-9, "{used}");
    let config = fs::read_to_string(bench.path("run/config.json")).unwrap();
    assert!(config.contains("MixtralForCausalLM"), "{config}");
    bench
        .run("generate run --prompt a --max-tokens 3 --json")
        .succeeds();
    // Converting a folder keeps its weights.
    bench.run("convert run copy").succeeds();
    assert_eq!(bench.weights("run"), bench.weights("copy"));
    // A tokenizer of more tokens than the embedding has rows is refused.
    bench
        .run("tokenizer train tiny.toml --kind byte --out copy/tokenizer.json")
        .succeeds();
    bench
        .run("generate copy --prompt a")
        .fails(1, &["256 tokens", "do not belong together"]);
    bench
        .run("convert run/tokenizer.json copy")
        .fails(2, &["neither a folder nor a .gguf or .bin"]);
}

#[test]
fn one_text_becomes_another() {
    let bench = Bench::new();
    let common = r#"
d_model = 16
n_layers = 1
n_heads = 2
seq_len = 32
[optimizer]
kind = "adamw"
lr = 1e-2
[train]
steps = 6
batch = 4
checkpoint_every = 3
"#;
    let t5 = "relative = { buckets = 8, max_distance = 16 }\nnorm = \"rms-norm\"\npre_norm = true\n\
              mlp = \"geglu\"\nbias = false\nscaled_scores = false";
    for (run, task, layout) in [("original", "reverse", ""), ("t5", "dates", t5)] {
        let recipe = format!(
            "summary = \"test\"\nfamily = \"seq2seq\"\n[data]\ntask = \"{task}\"\ncount = 40\n\
             held_out = 10\n[model]\n{layout}{common}"
        );
        bench.write("pairs.toml", recipe);
        let json = bench
            .run(&format!("train pairs.toml --json --out {run}"))
            .succeeds()
            .json();
        assert!(json["metrics"]["test_exact"].is_f64(), "{json}");
        let again = bench
            .run(&format!("evaluate {run} --json"))
            .succeeds()
            .json();
        assert_eq!(again["metrics"]["test_loss"], json["metrics"]["test_loss"]);
        bench
            .run(&format!("generate {run}"))
            .fails(1, &["--prompt"]);
    }
    bench
        .run("generate original --prompt abc --json")
        .succeeds();
    bench
        .run("generate original --prompt abc --beams 2")
        .fails(1, &["--beams", "continue a text"]);
    bench
        .run(&format!("generate original --prompt {}", "a".repeat(33)))
        .fails(1, &["1 more than the model reads"]);
}

#[test]
fn masked_words_are_guessed_and_the_reader_is_tuned() {
    let bench = Bench::new();
    let recipe = TINY_GPT
        .replace(
            "family = \"gpt\"",
            "family = \"bert\"\npairing = \"sentence-order\"",
        )
        .replace("[model]", "[model]\npooler = true\nhead = \"pretraining\"")
        .replace(
            "kind = \"char\"",
            "kind = \"word-piece\"\nvocab_size = 200\n\
             special_tokens = [\"[UNK]\", \"[CLS]\", \"[SEP]\", \"[MASK]\"]",
        );
    let (recipe, _) = recipe.split_once("[sample]").unwrap();
    bench.write("bert.toml", recipe);
    let json = bench
        .run("train bert.toml --json --out run")
        .succeeds()
        .json();
    for name in [
        "test_loss",
        "test_accuracy",
        "test_bits_per_byte",
        "test_pair_accuracy",
        "unigram_loss",
        "bigram_accuracy",
        "neighbours_loss",
    ] {
        assert!(json["metrics"][name].is_f64(), "{name}: {json}");
    }
    let again = bench.run("evaluate run --json").succeeds().json();
    assert_eq!(again["metrics"]["test_loss"], json["metrics"]["test_loss"]);
    assert_eq!(
        again["metrics"]["bigram_loss"],
        json["metrics"]["bigram_loss"]
    );

    // Gaps are filled, with the page of who looks at whom.
    let made = bench
        .run("generate run --prompt the[MASK] --top-k 3 --attention look.html --json")
        .succeeds()
        .json();
    let gaps = made["outputs"][0]["gaps"].as_array().unwrap();
    assert_eq!((gaps.len(), gaps[0].as_array().unwrap().len()), (1, 3));
    let page = fs::read_to_string(bench.path("look.html")).unwrap();
    assert!(page.contains("Heads by block"));
    bench
        .run("generate run --prompt the")
        .fails(1, &["no gap to fill; write [MASK]"]);

    // The encoder learns something else.
    let tuned = "summary = \"t\"\nfamily = \"finetune\"\ninit = \"run\"\n[data]\ntask = \"classify\"\n\
        source = \"path\"\n[optimizer]\nkind = \"adamw\"\nlr = 1e-3\n[train]\nsteps = 2\nbatch = 4\n";
    let lines = (0..20).map(|i| {
        let label = ["low", "high"][i % 2];
        format!("{{\"text\": \"a story {i}\", \"label\": \"{label}\"}}\n")
    });
    bench.write("texts.jsonl", lines.collect::<String>());
    bench.write("tuned.toml", tuned);
    for reader in ["bert", "bag-of-words"] {
        let json = bench
            .run(&format!(
                "train tuned.toml --data texts.jsonl --set reader={reader} --json --out {reader}"
            ))
            .succeeds()
            .json();
        assert!(json["metrics"]["test_accuracy_low"].is_f64(), "{json}");
        let again = bench
            .run(&format!("evaluate {reader} --json"))
            .succeeds()
            .json();
        assert_eq!(again["metrics"]["test_loss"], json["metrics"]["test_loss"]);
    }
    let config = fs::read_to_string(bench.path("bert/config.json")).unwrap();
    assert!(config.contains("\"high\""));
    assert_ne!(
        first_weights(&bench, "run"),
        first_weights(&bench, "bert"),
        "all of it learns, not the head alone"
    );
    let source = |task: &str, source: &str| {
        let sets = format!("--set data.task={task} --set data.source={source} --set data.count=20");
        bench.run(&format!("train tuned.toml {sets} --out {task}"))
    };
    source("tag", "heroes").succeeds();
    // The little reader reads sixteen tokens.
    source("answer", "whereabouts").fails(1, &["more than the model's"]);
    bench
        .run("train tuned.toml --set data.task=tag --set data.source=whereabouts")
        .fails(2, &["whereabouts to answer"]);
    bench.write("no-init.toml", tuned.replace("init = \"run\"\n", ""));
    bench
        .run("train no-init.toml --data texts.jsonl")
        .fails(1, &["--set init="]);
}

/// The matrix a BERT reads its tokens with.
fn first_weights(bench: &Bench, run: &str) -> Vec<f32> {
    let device = maquette::burn::tensor::Device::flex();
    let (_, model) = maquette::models::hf::load_bert(&bench.path(run), &device).unwrap();
    let weights = maquette::models::store::tensors(&model);
    let (_, data) = weights
        .into_iter()
        .find(|(name, _)| name == "tokens.weight")
        .unwrap();
    data.try_to_vec().unwrap()
}

#[test]
fn packed_documents_stay_apart() {
    let bench = Bench::new();
    let packed = "train tiny.toml --set data.packing=true --json --out";
    bench
        .run(&format!("{packed} none"))
        .fails(1, &["needs a token that closes a document"]);
    let sets = "--set tokenizer.special_tokens=[\"<|endoftext|>\"]";
    let json = bench.run(&format!("{packed} run {sets}")).succeeds().json();
    let again = bench.run("evaluate run --json").succeeds().json();
    assert_eq!(
        again["metrics"]["validation_loss"],
        json["metrics"]["validation_loss"]
    );
}

/// Two players on points, with everything that is state beside weights: moments, moving averages, power
/// iterations, running statistics.
const TINY_GAN: &str = r#"
summary = "test"
family = "gan-points"
[data]
source = "ring8"
count = 200
[model]
d_latent = 4
width = 16
n_layers = 2
[generator]
turns = 1
optimizer = { kind = "adam", lr = 1e-3 }
[critic]
turns = 2
optimizer = { kind = "rmsprop", lr = 1e-3 }
[train]
steps = 12
batch = 8
ema = 0.9
checkpoint_every = 4
[evaluate]
count = 50
"#;

#[test]
fn two_players_resume_in_the_same_bytes_and_are_asked() {
    let bench = Bench::new();
    bench.write("gan.toml", TINY_GAN);
    let stateful = "--set model.critic.spectral_norm=true --set model.generator.norm=batch \
                    --set objective.instance_noise={std=0.1,until=8} \
                    --set objective.gradient_penalty={kind=\"r1\",weight=1.0}";
    let unrolled = "--set objective.unroll.steps=2 --set objective.unroll.lr=0.1 \
                    --set model.critic.spectral_norm=true";
    for (name, sets) in [("stateful", stateful), ("unrolled", unrolled)] {
        let train = |run: &str| {
            let ran = bench.run(&format!("train gan.toml --out {run} --json {sets}"));
            ran.succeeds().json()
        };
        let (whole, cut) = (format!("{name}-whole"), format!("{name}-cut"));
        let metrics = train(&whole)["metrics"].clone();
        assert!(metrics["modes"].as_f64().unwrap() <= 8.0, "{metrics}");
        train(&cut);
        bench.cut_after_the_first_checkpoint(&cut);
        bench.run(&format!("train --resume {cut}")).succeeds();
        assert_eq!(bench.weights(&whole), bench.weights(&cut), "{name}");
        let critic = |run: &str| fs::read(bench.path(run).join("critic.safetensors")).unwrap();
        assert_eq!(critic(&whole), critic(&cut), "{name}");
    }
    let made = bench
        .run("generate unrolled-whole -n 5 --out made --json")
        .succeeds();
    assert_eq!(made.json()["outputs"].as_array().unwrap().len(), 2);
    let table = fs::read_to_string(bench.path("made/points.csv")).unwrap();
    assert_eq!(table.lines().count(), 6);
    let log = fs::read_to_string(bench.path("stateful-whole/metrics.jsonl")).unwrap();
    for curve in [
        "critic_loss",
        "generator_loss",
        "critic_accuracy",
        "gradient_penalty",
    ] {
        assert!(log.contains(curve), "no {curve}");
    }
}

#[test]
fn remedies_that_do_not_fit_are_refused_by_name() {
    let bench = Bench::new();
    bench.write("gan.toml", TINY_GAN);
    for (sets, words) in [
        (
            "model.critic.activation=gelu objective.gradient_penalty={kind=\"wgan-gp\",weight=10.0}",
            "model.critic.activation is Gelu",
        ),
        (
            "objective.loss=hinge objective.label_smoothing=0.1",
            "no target to smooth",
        ),
        (
            "model.critic.packing=3",
            "a multiple of model.critic.packing = 3",
        ),
        ("train.clip_norm=1.0", "move it to [generator] or [critic]"),
        ("critic.turns=0", "`turns` must be at least 1"),
    ] {
        let sets: Vec<_> = sets.split(' ').map(|set| format!("--set {set}")).collect();
        let ran = bench.run(&format!("train gan.toml {}", sets.join(" ")));
        ran.fails(2, &[words]);
    }
}

/// Two players on small glyphs.
const TINY_PICTURES: &str = r#"
summary = "test"
family = "gan"
[data]
source = "glyphs"
glyphs = { size = 16, per_class = 5 }
[model]
network = "dcgan"
conditioning = "projection"
d_latent = 4
width = 4
[generator]
optimizer = { kind = "adam", lr = 1e-3 }
[critic]
turns = 2
optimizer = { kind = "adam", lr = 1e-3 }
[train]
steps = 12
batch = 8
checkpoint_every = 4
[evaluate]
count = 20
judge_steps = 2
"#;

#[test]
fn players_of_images_resume_and_draw_what_is_asked() {
    let bench = Bench::new();
    bench.write("gan.toml", TINY_PICTURES);
    let residual = "--set model.network=resnet --set model.critic.spectral_norm=true \
                    --set objective.augment={colour=true,translation=0.125,cutout=0.5}";
    let style = "--set model.network=style --set model.conditioning=auxiliary \
                 --set objective.gradient_penalty={kind=\"r1\",weight=1.0}";
    for (name, sets) in [("dcgan", ""), ("residual", residual), ("style", style)] {
        let train = |run: &str| {
            let ran = bench.run(format!("train gan.toml --out {run} --json {sets}").trim());
            ran.succeeds().json()["metrics"].clone()
        };
        let (whole, cut) = (format!("{name}-whole"), format!("{name}-cut"));
        let metrics = train(&whole);
        assert!(metrics["readback"].as_f64().is_some(), "{metrics}");
        train(&cut);
        bench.cut_after_the_first_checkpoint(&cut);
        bench.run(&format!("train --resume {cut}")).succeeds();
        assert_eq!(bench.weights(&whole), bench.weights(&cut), "{name}");
        let drawn = format!("generate {whole} -n 3 --label 7 --truncation 0.7 --out {name}-made");
        bench.run(&drawn).succeeds();
        let again = format!("generate --replay {name}-made/0001.png --out {name}-again.png");
        bench.run(&again).succeeds();
        let read = |path: String| fs::read(bench.path(&path)).unwrap();
        assert_eq!(
            read(format!("{name}-made/0001.png")),
            read(format!("{name}-again.png"))
        );
    }
    let walk = "generate dcgan-whole --interpolate 1 2 --label 3 --points 3 --out walk";
    bench.run(walk).succeeds();
    bench
        .run("generate dcgan-whole --label Q")
        .fails(1, &["there is no class `Q`"]);
}

#[test]
fn faults_of_a_game_are_named_in_log_and_report() {
    let bench = Bench::new();
    bench.write("gan.toml", TINY_PICTURES);
    let ran = bench.run("train gan.toml --out run --steps 24 --set pixels=unit");
    ran.succeeds();
    let found = fs::read_to_string(bench.path("run/diagnosis.jsonl")).unwrap();
    assert!(found.contains("range-mismatch"), "{found}");
    let report = fs::read_to_string(bench.path("run/report.html")).unwrap();
    assert!(report.contains("data range mismatch"));
}

#[test]
fn labels_and_sizes_that_do_not_fit_are_refused() {
    let bench = Bench::new();
    bench.write("gan.toml", TINY_PICTURES);
    for (sets, code, words) in [
        (
            "model.n_classes=7",
            1,
            "model.n_classes = 7, and the data has 10",
        ),
        ("data.glyphs.size=15", 1, "these are 15x15"),
        ("model.critic.packing=2", 2, "several labels"),
    ] {
        let ran = bench.run(&format!("train gan.toml --set {sets}"));
        ran.fails(code, &[words]);
    }
}
