//! `maquette convert`: a model of another format as a Hugging Face folder.

use std::path::Path;

use burn::tensor::Device;
use maquette::data::Tokenizer;
use maquette::models::{hf, llama2c};
use serde_json::json;

use super::progress::Status;
use crate::args::ConvertArgs;
use crate::errors::{Usage, failed};
use crate::output::Output;

/// Read, check, write.
pub(crate) fn run(args: &ConvertArgs, output: Output) -> miette::Result<()> {
    let (input, out) = (&args.input, &args.output);
    let binary = is_binary(input);
    if !input.is_dir() && !binary {
        return Err(Usage::new(
            format!("{}: neither a folder nor a .bin file", input.display()),
            "models are read from Hugging Face folders and from the .bin files of llama2.c",
        )
        .into());
    }
    let status = Status::new(output.quiet);
    status.say("loading the model");
    let device = Device::flex();
    let loaded = match binary {
        true => llama2c::load(input, &device),
        false => hf::load(input, &device),
    };
    status.clear();
    let (config, model) = loaded.map_err(failed)?;
    let tokenizer = match &args.tokenizer {
        Some(path) if is_binary(path) => Some(Tokenizer::load_llama2c(path)),
        Some(path) => Some(Tokenizer::load(path)),
        None if binary => None,
        None => Some(Tokenizer::load(input)),
    };
    let tokenizer = tokenizer.transpose().map_err(failed)?;
    if let Some(known) = tokenizer.as_ref().map(Tokenizer::vocab_size)
        && known > config.vocab_size
    {
        return Err(Usage::new(
            format!(
                "the tokenizer has {known} tokens, the model's embedding only {}",
                config.vocab_size
            ),
            "give the tokenizer that the model was trained with",
        )
        .into());
    }
    hf::save(out, &config, &model).map_err(failed)?;
    let generation = match binary {
        // llama2.c begins and ends every text with token 1.
        true => hf::GenerationConfig {
            bos_token_id: Some(1),
            eos_token_id: Some(hf::TokenIds::Many(vec![1, 2])),
            ..hf::GenerationConfig::default()
        },
        false => hf::load_generation_config(input).map_err(failed)?,
    };
    hf::save_generation_config(out, &generation).map_err(failed)?;
    if let Some(tokenizer) = &tokenizer {
        tokenizer.save(out).map_err(failed)?;
    }
    let parameters = burn::module::Module::num_params(&model);
    output.line(format_args!(
        "{parameters} parameters, written to {}{}",
        out.display(),
        if tokenizer.is_some() {
            ""
        } else {
            " without a tokenizer: give one with --tokenizer"
        }
    ));
    output.object(&json!({
        "path": out, "parameters": parameters, "vocab_size": config.vocab_size,
        "tokenizer": tokenizer.is_some(),
    }));
    Ok(())
}

fn is_binary(path: &Path) -> bool {
    path.is_file() && path.extension().is_some_and(|extension| extension == "bin")
}
