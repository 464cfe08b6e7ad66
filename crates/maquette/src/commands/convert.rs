//! `maquette convert`: a model in another format.

use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use maquette::data::Tokenizer;
use maquette::data::hub::Want;
use maquette::generate::gguf as tokens;
use maquette::generate::template::ChatTemplate;
use maquette::models::gguf::{self, Metadata, Mix};
use maquette::models::{Gpt, GptConfig, hf, llama2c};
use serde_json::json;

use super::hub;
use super::progress::Status;
use crate::args::ConvertArgs;
use crate::errors::{Usage, failed};
use crate::output::Output;

/// What is converted, whatever it was read from.
struct Source {
    config: GptConfig,
    model: Gpt,
    tokenizer: Option<Tokenizer>,
    generation: hf::GenerationConfig,
    template: Option<ChatTemplate>,
}

/// Read, check, write.
pub(crate) fn run(args: &ConvertArgs, output: Output) -> miette::Result<()> {
    let out = &args.output;
    let to_gguf = has_extension(out, "gguf");
    if args.quantize.is_some() && !to_gguf {
        return Err(Usage::new(
            format!("--quantize with the folder {}", out.display()),
            "folders hold 32-bit floats; name the output `.gguf` for another number format",
        )
        .into());
    }
    let status = Status::new(output.quiet);
    let input = hub::local(&args.input, Want::Model, output)?;
    let given = args.tokenizer.as_deref();
    let given = given.map(|path| hub::local(path, Want::Tokenizer, output));
    let given = given.transpose()?;
    status.say("loading the model");
    let source = read(&input, given.as_deref());
    status.clear();
    let source = source?;
    let known = source.tokenizer.as_ref().map(Tokenizer::vocab_size);
    if let Some(known) = known.filter(|known| *known > source.config.vocab_size) {
        return Err(Usage::new(
            format!(
                "the tokenizer has {known} tokens, the model's embedding only {}",
                source.config.vocab_size
            ),
            "give the tokenizer that the model was trained with",
        )
        .into());
    }
    status.say("writing");
    let written = match to_gguf {
        true => write_file(args, &source),
        false => write_folder(out, &source),
    };
    status.clear();
    let with_tokenizer = written?;
    let parameters = source.model.num_params();
    let without = match (with_tokenizer, &source.tokenizer) {
        (true, _) => "",
        (false, None) => " without a tokenizer: give one with --tokenizer",
        (false, Some(_)) => {
            " without its tokenizer: GGUF knows byte-level and SentencePiece byte-pair encoding only"
        }
    };
    output.line(format_args!(
        "{parameters} parameters, written to {}{without}",
        out.display(),
    ));
    output.object(&json!({
        "path": out, "parameters": parameters, "vocab_size": source.config.vocab_size,
        "tokenizer": with_tokenizer,
    }));
    Ok(())
}

fn read(input: &Path, given: Option<&Path>) -> miette::Result<Source> {
    let device = Device::flex();
    let mut template = None;
    let (config, model, own, generation) = if input.is_dir() {
        template = ChatTemplate::load(input).map_err(failed)?;
        let (config, model) = hf::load(input, &device).map_err(failed)?;
        let generation = hf::load_generation_config(input).map_err(failed)?;
        let own = match given {
            None => Some(Tokenizer::load(input).map_err(failed)?),
            Some(_) => None,
        };
        (config, model, own, generation)
    } else if input.is_file() && has_extension(input, "gguf") {
        let file = gguf::File::open(input).map_err(failed)?;
        let (config, model) = gguf::load(&file, &device).map_err(failed)?;
        template = ChatTemplate::of_gguf(&file).map_err(failed)?;
        let own = match given {
            None => tokens::tokenizer(&file).map_err(failed)?,
            Some(_) => None,
        };
        (config, model, own, tokens::generation_config(&file))
    } else if input.is_file() && has_extension(input, "bin") {
        let (config, model) = llama2c::load(input, &device).map_err(failed)?;
        // llama2.c begins and ends every text with token 1.
        let generation = hf::GenerationConfig {
            bos_token_id: Some(1),
            eos_token_id: Some(hf::TokenIds::Many(vec![1, 2])),
            ..hf::GenerationConfig::default()
        };
        (config, model, None, generation)
    } else {
        return Err(Usage::new(
            format!(
                "{}: neither a folder nor a .gguf or .bin file",
                input.display()
            ),
            "models are read from Hugging Face folders, GGUF files and the .bin files of llama2.c",
        )
        .into());
    };
    let given = match given {
        Some(path) if has_extension(path, "bin") => Some(Tokenizer::load_llama2c(path)),
        Some(path) => Some(Tokenizer::load(path)),
        None => None,
    };
    Ok(Source {
        config,
        model,
        tokenizer: given.transpose().map_err(failed)?.or(own),
        generation,
        template,
    })
}

/// Whether the tokenizer went along.
fn write_folder(out: &Path, source: &Source) -> miette::Result<bool> {
    hf::save(out, &source.config, &source.model).map_err(failed)?;
    hf::save_generation_config(out, &source.generation).map_err(failed)?;
    if let Some(tokenizer) = &source.tokenizer {
        tokenizer.save(out).map_err(failed)?;
    }
    if let Some(template) = &source.template {
        template.save(out).map_err(failed)?;
    }
    Ok(source.tokenizer.is_some())
}

/// Whether the tokenizer went along.
fn write_file(args: &ConvertArgs, source: &Source) -> miette::Result<bool> {
    let name = args.quantize.as_deref().unwrap_or("f16");
    let mix = Mix::ALL.iter().find(|(known, _)| *known == name);
    let (_, mix) = mix.expect("the arguments allow no other");
    let metadata = match &source.tokenizer {
        Some(tokenizer) => tokens::metadata(tokenizer, source.config.vocab_size).map_err(failed)?,
        None => None,
    };
    let with_tokenizer = metadata.is_some();
    let mut metadata = metadata.unwrap_or_else(Metadata::new);
    if with_tokenizer {
        tokens::add_generation_config(&mut metadata, &source.generation);
    }
    if let Some(template) = &source.template {
        let text = gguf::Value::String(template.source().into());
        metadata.insert("tokenizer.chat_template".into(), text);
    }
    if let Some(name) = args.output.file_stem().and_then(|name| name.to_str()) {
        metadata.insert("general.name".into(), gguf::Value::String(name.into()));
    }
    let path = &args.output;
    gguf::save(path, &source.config, &source.model, *mix, metadata).map_err(failed)?;
    Ok(with_tokenizer)
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|own| own == extension)
}
