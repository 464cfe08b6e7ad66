//! What is read, and what it looks like undamaged.

use std::path::Path;
use std::sync::OnceLock;

use maquette::burn::tensor::Device;
use maquette::data::tokenizer::{TokenizerConfig, TokenizerKind};
use maquette::data::{Split, Tokenizer, images, stories};
use maquette::eval::tasks::{Asking, Doc, Task, TaskConfig, TaskError};
use maquette::generate::constraint::{Form, Vocabulary};
use maquette::generate::gguf as tokens;
use maquette::generate::image::{Picture, encode_png, read_png, read_recipe};
use maquette::generate::template::{Chat, ChatTemplate};
use maquette::models::features::SqueezeNet;
use maquette::models::gguf::{self, Mix};
use maquette::models::{GptConfig, hf, llama2c};
use maquette::rng::{Stream, rng};
use maquette::train::Source;
use maquette::train::recipes::Family;
use maquette::train::recipes::gpt::GptRecipe;

/// One kind of file.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// Files as they should be.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
    /// Reads one; what comes of it does not matter. The folder is scratch.
    pub(crate) read: fn(&[u8], &Path),
}

macro_rules! targets {
    ($($name:ident: $seeds:expr, $read:expr;)*) => {
        pub(crate) const TARGETS: &[Target] =
            &[$(Target { name: stringify!($name), seeds: $seeds, read: $read }),*];
    };
}

targets! {
    gguf: || ["f16", "q8_0"].map(ggufs).into(), |bytes, folder| {
        let path = put(folder, "model.gguf", bytes);
        if let Ok(file) = gguf::File::open(&path) {
            let _ = tokens::tokenizer(&file).map(|found| found.map(|found| use_tokenizer(&found)));
            let _ = tokens::generation_config(&file);
            let _ = gguf::load(&file, &Device::flex());
        }
    };
    safetensors: || vec![model_file("model.safetensors")], |bytes, folder| {
        with_model(folder, "model.safetensors", bytes);
    };
    config: || vec![model_file("config.json")], |bytes, folder| {
        with_model(folder, "config.json", bytes);
    };
    index: || vec![br#"{"metadata":{"total_size":4},"weight_map":{"model.norm.weight":"a.safetensors"}}"#.to_vec()],
        |bytes, folder| {
            put(folder, "config.json", &model_file("config.json"));
            put(folder, "a.safetensors", &model_file("model.safetensors"));
            put(folder, "model.safetensors.index.json", bytes);
            let _ = hf::load(folder, &Device::flex());
        };
    llama2c: || vec![llama2cs()], |bytes, folder| {
        let _ = llama2c::load(&put(folder, "model.bin", bytes), &Device::flex());
    };
    tokenizer_json: tokenizers, |bytes, _| {
        if let Some(Ok(found)) = std::str::from_utf8(bytes).ok().map(Tokenizer::from_json) {
            use_tokenizer(&found);
        }
    };
    tokenizer_model: || vec![include_bytes!("../../../maquette-data/fixtures/unigram.model").to_vec()],
        |bytes, _| {
            if let Ok(found) = Tokenizer::from_sentencepiece(bytes) {
                use_tokenizer(&found);
            }
        };
    tokenizer_bin: || vec![tokenizer_bins()], |bytes, folder| {
        if let Ok(found) = Tokenizer::load_llama2c(&put(folder, "tokenizer.bin", bytes)) {
            use_tokenizer(&found);
        }
    };
    idx: || vec![idx(0x803, &[2, 3, 4], 24), idx(0x801, &[2], 2)], |bytes, folder| {
        // Both files of a set are damaged, each with the other whole.
        let part = |name: &str| put(folder, name, bytes);
        for name in ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"] {
            put(folder, "t10k-images-idx3-ubyte", &idx(0x803, &[2, 3, 4], 24));
            put(folder, "t10k-labels-idx1-ubyte", &idx(0x801, &[2], 2));
            part(name);
            let _ = images::open(folder, Split::Test);
        }
    };
    png: || vec![pngs()], |bytes, folder| {
        let path = put(folder, "picture.png", bytes);
        let _ = read_png(&path);
        let _ = read_recipe(&path);
    };
    recipe: recipes, |bytes, _| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            let source = Source::new("recipe.toml", text, &[]);
            let _ = Family::of(&source);
            let _ = GptRecipe::parse(&source);
        }
    };
    squeezenet: || vec![squeezenets()], |bytes, folder| {
        let _ = SqueezeNet::load(&put(folder, "compressed.net", bytes), &Device::flex());
    };
    task: || vec![include_bytes!("../../../../tasks/story-ending.yaml").to_vec(), WRITTEN.as_bytes().to_vec()],
        |bytes, _| {
            if let Ok(text) = std::str::from_utf8(bytes)
                && let Ok(config) = TaskConfig::parse(text)
            {
                ask(config);
            }
        };
    template: || TEMPLATES.map(|text| text.as_bytes().to_vec()).into(), |bytes, _| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            let mut config = TaskConfig::parse(WRITTEN).unwrap();
            config.doc_to_text = text.into();
            config.doc_to_target = text.into();
            ask(config);
        }
    };
    chat_template: || CHAT_TEMPLATES.map(|text| text.as_bytes().to_vec()).into(), |bytes, _| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            speak(text, MESSAGES);
        }
    };
    messages: || vec![MESSAGES.as_bytes().to_vec()], |bytes, _| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            speak(CHAT_TEMPLATES[0], text);
        }
    };
    schema: schemas, |bytes, _| {
        if let Ok(schema) = serde_json::from_slice(bytes) {
            keep_to(Form::JsonSchema(schema));
        }
    };
    grammar: || GRAMMARS.map(|text| text.as_bytes().to_vec()).into(), |bytes, _| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            keep_to(Form::Grammar(text.to_owned()));
        }
    };
    pattern: || PATTERNS.map(|text| text.as_bytes().to_vec()).into(), |bytes, _| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            keep_to(Form::Regex(text.to_owned()));
        }
    };
}

fn put(folder: &Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn tiny() -> GptConfig {
    GptConfig {
        vocab_size: 300,
        seq_len: 8,
        d_model: 8,
        n_layers: 1,
        n_heads: 2,
        d_ff: Some(32),
        ..GptConfig::llama()
    }
}

fn bpe() -> &'static Tokenizer {
    static BPE: OnceLock<Tokenizer> = OnceLock::new();
    BPE.get_or_init(|| {
        let config = TokenizerConfig {
            vocab_size: 290,
            special_tokens: vec!["<|endoftext|>".into()],
            ..TokenizerConfig::default()
        };
        config
            .train(std::iter::once(Ok(stories::generate(5, 0))))
            .unwrap()
    })
}

fn use_tokenizer(tokenizer: &Tokenizer) {
    for text in ["", "Once upon a time <|endoftext|> é日🦀\n", "  </s>aaa"] {
        if let Ok(ids) = tokenizer.encode(text) {
            let _ = tokenizer.decode(&ids);
        }
        let _ = tokenizer.encode_with_template(text);
        let _ = tokenizer.encode_literal(text);
    }
}

fn ggufs(mix: &str) -> Vec<u8> {
    let (config, folder) = (
        GptConfig {
            d_model: 32,
            ..tiny()
        },
        tempfile::tempdir().unwrap(),
    );
    let model = config.init(&Device::flex(), &mut rng(0, Stream::Init, 0));
    let (_, mix) = Mix::ALL.iter().find(|(name, _)| *name == mix).unwrap();
    let metadata = tokens::metadata(bpe(), config.vocab_size).unwrap().unwrap();
    let path = folder.path().join("model.gguf");
    gguf::save(&path, &config, &model, *mix, metadata).unwrap();
    std::fs::read(path).unwrap()
}

/// A file of a model's folder.
fn model_file(name: &str) -> Vec<u8> {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let config = tiny();
        let model = config.init(&Device::flex(), &mut rng(0, Stream::Init, 0));
        hf::save(folder.path(), &config, &model).unwrap();
        folder
    });
    std::fs::read(folder.path().join(name)).unwrap()
}

fn with_model(folder: &Path, name: &str, bytes: &[u8]) {
    for name in ["config.json", "model.safetensors"] {
        put(folder, name, &model_file(name));
    }
    put(folder, name, bytes);
    let _ = hf::load(folder, &Device::flex());
}

/// llama2.c's header and as many weights as it asks for, all zero.
fn llama2cs() -> Vec<u8> {
    let (dim, hidden, layers, heads, vocab, seq) = (8, 16, 1, 2, 11, 4);
    let header = [dim, hidden, layers, heads, heads, vocab, seq];
    let per_layer = 2 * dim + 4 * dim * dim + 3 * dim * hidden;
    // The tables of rotary positions follow the last norm.
    let floats = vocab * dim + layers * per_layer + dim + seq * (dim / heads);
    let header = header.iter().flat_map(|number: &i32| number.to_le_bytes());
    header
        .chain(std::iter::repeat_n(0, 4 * floats as usize))
        .collect()
}

fn tokenizers() -> Vec<Vec<u8>> {
    let learnt = |kind, vocab_size| {
        let config = TokenizerConfig {
            kind,
            vocab_size,
            ..TokenizerConfig::default()
        };
        let learnt = config
            .train(std::iter::once(Ok(stories::generate(3, 0))))
            .unwrap();
        learnt.to_json().unwrap().into_bytes()
    };
    let mut all = vec![
        learnt(TokenizerKind::Char, 0),
        learnt(TokenizerKind::WordPiece, 80),
        learnt(TokenizerKind::Unigram, 60),
    ];
    all.push(bpe().to_json().unwrap().into_bytes());
    all
}

fn tokenizer_bins() -> Vec<u8> {
    let mut bytes = 7i32.to_le_bytes().to_vec();
    let special = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter();
    let pieces = special.chain((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    for piece in pieces.chain([" ", "a", "b", " a", "ab"].map(str::to_owned)) {
        bytes.extend((-1f32).to_le_bytes());
        bytes.extend((piece.len() as i32).to_le_bytes());
        bytes.extend(piece.bytes());
    }
    bytes
}

fn idx(magic: u32, dims: &[u32], bytes: usize) -> Vec<u8> {
    let header = std::iter::once(&magic)
        .chain(dims)
        .flat_map(|number| number.to_be_bytes());
    header.chain(std::iter::repeat_n(1, bytes)).collect()
}

fn pngs() -> Vec<u8> {
    let picture = Picture::new(4, 3, 1, vec![7; 12]).unwrap();
    encode_png(
        &picture,
        &[("maquette", "{\"recipe\": \"a = 1\"}"), ("seed", "7")],
    )
    .unwrap()
}

/// One stored weight per layer of the 26, whose channels and so offsets these are.
fn squeezenets() -> Vec<u8> {
    let fires = [16, 16, 32, 32, 48, 48, 64, 64];
    let fires = fires
        .into_iter()
        .flat_map(|narrow| [narrow, 4 * narrow, 4 * narrow]);
    let channels = std::iter::once(96).chain(fires).chain([1000]);
    let mut bytes = 1u32.to_le_bytes().repeat(26);
    for channels in channels {
        bytes.extend(std::iter::repeat_n(0, 4 * (256 + channels)));
        bytes.extend([1, 7]);
    }
    bytes
}

fn recipes() -> Vec<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../recipes");
    let files = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.collect();
    files.sort();
    files
        .iter()
        .map(|file| std::fs::read(file).unwrap())
        .collect()
}

const WRITTEN: &str = r#"
task: written
dataset_path: x.jsonl
test_split: test
doc_to_text: "{{q}} ="
doc_to_target: "{{a}}"
num_fewshot: 1
fewshot_split: test
generation_kwargs: {until: ["\n"], max_gen_toks: 8}
filter_list:
  - name: strict
    filter: [{function: regex, regex_pattern: "= (\\d+)", group_select: -1}, {function: take_first}]
metric_list: [{metric: exact_match, ignore_case: true}]
"#;

const TEMPLATES: [&str; 4] = [
    "{{ q }} is {{ options[0] | upper }}",
    "{% for o in options %}{{ loop.index }}. {{ o.strip() }}\n{% endfor %}",
    "{{ [q, a] + options }}",
    "{% set x = namespace(n=1) %}{% if q is defined and a %}{{ q[:2] ~ x.n }}{% else %}-{% endif %}",
];

fn ask(config: TaskConfig) {
    let doc = serde_json::json!({ "q": "1+1", "a": "2", "options": ["2", "3"], "answer": 0,
        "beginning": "Once.", "endings": ["a", "b", "c"] });
    let doc: Doc = doc.as_object().unwrap().clone();
    let mut other = doc.clone();
    other.insert("q".into(), "2+2".into());
    let load = |_: &str| -> Result<Vec<Doc>, TaskError> { Ok(vec![doc.clone(), other.clone()]) };
    if let Ok(task) = Task::new(config, load) {
        let asking = Asking {
            num_fewshot: Some(1),
            resamples: 10,
            ..Asking::default()
        };
        let _ = task.questions(asking);
    }
}

const MESSAGES: &str = r#"{"messages": [{"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "How late is it?"}]},
    {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "function": {"name": "now", "arguments": {}}}]},
    {"role": "tool", "content": "12:03"}],
    "tools": [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}], "thinking": true}"#;

const CHAT_TEMPLATES: [&str; 3] = [
    "{{ bos_token }}{% for m in messages %}{% if m['content'] is string %}{{ m.role.upper() + ': ' + m.content | trim }}\n\
     {% else %}{% for part in m.content or [] %}{{ part['text'].split()[0] }}{% endfor %}{% endif %}{% endfor %}\
     {% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{% if add_generation_prompt %}assistant:{% endif %}",
    "{%- macro say(m) -%}{{ '<' ~ m.role ~ '>' }}{% generation %}{{ m.content }}{% endgeneration %}{%- endmacro -%}\
     {% set ns = namespace(last=none) %}{% for m in messages[::-1] %}{% if loop.first %}{% set ns.last = m %}\
     {% continue %}{% endif %}{{ say(m) }}{% endfor %}{{ ns.last.items() | list | length }}",
    "{% if messages[0].role != 'user' %}{{ raise_exception('first the user, not ' + messages[0].role) }}{% endif %}\
     {{ strftime_now('%Y-%m-%d') }}{{ range(1000) | join(',') }}{{ 'a' * 20 }}",
];

/// Writes the messages with a template.
fn speak(template: &str, messages: &str) {
    let tokens = [("bos_token".to_owned(), "<s>".to_owned())].into();
    if let (Ok(template), Ok(chat)) = (
        ChatTemplate::new(template, tokens),
        Chat::from_json(messages),
    ) {
        let _ = template.render(&chat.with_system("Be kind.").with_user("And now?"));
    }
}

fn schemas() -> Vec<Vec<u8>> {
    let all = include_str!("../../../maquette-generate/fixtures/schemas.json");
    let all: Vec<serde_json::Value> = serde_json::from_str(all).unwrap();
    let all = all.iter().map(|schema| schema.to_string().into_bytes());
    all.collect()
}

const GRAMMARS: [&str; 3] = [
    "start: sum\nsum: product (\"+\" product)*\nproduct: NUMBER | \"(\" sum \")\"\nNUMBER: /[0-9]{1,4}/\n%ignore /[ ]+/",
    "start: \"a\"{2,5} word?\nword[max_tokens=5]: /(?i)[a-z]+/ & /.*b.*/\n%import common.INT",
    "start: object\nobject: %json {\"type\": \"object\", \"properties\": {\"n\": {\"type\": \"integer\"}}} <|endoftext|>",
];

const PATTERNS: [&str; 3] = [
    r"[0-9]{4}-(0[1-9]|1[0-2])",
    r"(?i:yes|no)\s\p{L}+[^\n]*\.{1,3}",
    r"(a|b){1,50}(\d+|\x41|\u{e9})?",
];

/// Writes a few tokens in a form, always the likeliest of a model that likes late ones.
fn keep_to(form: Form) {
    static VOCABULARY: OnceLock<Vocabulary> = OnceLock::new();
    let vocabulary = VOCABULARY.get_or_init(|| Vocabulary::new(bpe(), &[]).unwrap());
    let Ok(mut constraint) = vocabulary.constraint(&form) else {
        return;
    };
    for _ in 0..20 {
        let mut logits: Vec<f32> = (0..bpe().vocab_size()).map(|id| id as f32).collect();
        if constraint.complete() || constraint.mask(&mut logits).is_err() {
            return;
        }
        let best = logits.iter().zip(0u32..).max_by(|a, b| a.0.total_cmp(b.0));
        if best.is_none_or(|(_, id)| constraint.take(id).is_err()) {
            return;
        }
    }
}
