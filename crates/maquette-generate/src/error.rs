use std::path::PathBuf;

/// Why nothing could be generated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// A decoding option lies outside its range.
    #[error("`{option}` is {value}, but it must be {allowed}")]
    Option {
        /// The name of the option.
        option: &'static str,
        /// What was given.
        value: String,
        /// What may be given.
        allowed: &'static str,
    },
    /// The model put a number that is not a number into its logits.
    #[error(
        "the model's logit for token {token} is not a number: the weights are damaged or the run diverged; \
         generate from an earlier checkpoint"
    )]
    NotANumber {
        /// The token whose logit it is.
        token: usize,
    },
    /// No token has any probability.
    #[error(
        "the model gives no token a finite logit ({vocab_size} tokens), so there is nothing to draw from"
    )]
    NothingPossible {
        /// How many tokens there are.
        vocab_size: usize,
    },
    /// The prompt has no token to start from.
    #[error("the prompt holds no token; give at least one character, or the model's start token")]
    EmptyPrompt,
    /// A prompt that the context cannot hold.
    #[error(
        "the prompt has {length} tokens, {} more than the context of {context}; shorten it, or keep \
         only its end (--truncate)",
        length - context
    )]
    PromptTooLong {
        /// Its tokens.
        length: usize,
        /// The most there may be.
        context: usize,
    },
    /// A draft model that cannot guess for the other.
    #[error(
        "the draft model has {theirs} tokens, the model {ours}: guesses need the same vocabulary; \
         take a draft of the same family"
    )]
    Draft {
        /// The model's vocabulary.
        ours: usize,
        /// The draft's.
        theirs: usize,
    },
    /// A passage to be measured is longer than the model can read.
    #[error(
        "a passage of {tokens} tokens, {} more than the model's context of {seq_len}",
        tokens - seq_len
    )]
    PassageTooLong {
        /// How long it is.
        tokens: usize,
        /// How much the model reads.
        seq_len: usize,
    },
    /// A token the model does not know.
    #[error(
        "token {token} is not below the model's vocabulary size of {vocab_size}: the tokenizer belongs to another model"
    )]
    UnknownToken {
        /// The offending id.
        token: u32,
        /// The model's vocabulary size.
        vocab_size: usize,
    },
    /// The device did not hand its numbers over.
    #[error("cannot read the model's output back from its device: {0}")]
    Device(String),
    /// The tokenizer cannot read the prompt.
    #[error("cannot turn the prompt into tokens: {0}")]
    Encode(String),
    /// The tokenizer cannot spell what was generated.
    #[error("cannot turn the generated tokens into text: {0}")]
    Decode(String),
    /// A form for constrained text that is not understood, or that no token can continue.
    #[error("{form}: {what}")]
    Form {
        /// Which kind of form.
        form: &'static str,
        /// What is wrong with it, and where.
        what: String,
    },
    /// A search that would leave the model's context.
    #[error(
        "a prompt of {prompt} tokens and {max_tokens} after it do not fit into the model's context of \
         {context}; a search cannot forget the beginning: ask for fewer tokens (--max-tokens)"
    )]
    NoRoom {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens asked for.
        max_tokens: usize,
        /// The most that the model reads.
        context: usize,
    },
    /// A chat template that is not understood, or refuses the messages.
    #[error("chat template: {0}")]
    Template(String),
    /// A tokenizer that is not understood.
    #[error("{0}")]
    Tokenizer(String),
    /// A noise schedule or step count that no sampler can follow.
    #[error("cannot lay out the sampling steps: {0}")]
    Steps(String),
    /// Pictures that do not fit what is asked of them.
    #[error("{0}")]
    Picture(String),
    /// Latent vectors that cannot be combined.
    #[error("{0}")]
    Latent(String),
    /// A PNG that cannot be written or read.
    #[error("{}: {what}", path.display())]
    Png {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
}
