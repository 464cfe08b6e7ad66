//! What can go wrong with data, and what to do about it.

use std::path::{Path, PathBuf};

/// Every error of this crate. Each message says what, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The path does not exist.
    #[error("{path}: no such file or folder; check the path given with --data", path = .0.display())]
    Missing(PathBuf),
    /// The operating system refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A path of the Hugging Face hub that leads nowhere.
    #[error("{0}")]
    Hub(String),
    /// The file is there but holds nothing.
    #[error("{path}: the file is empty; fetch or copy it again", path = .0.display())]
    Empty(PathBuf),
    /// The file is not what its place or name says.
    #[error("{path}: {reason}", path = path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// The file ends before what its header announces.
    #[error(
        "{path}: truncated: the header announces {expected} bytes of data, only {found} are there; fetch or copy it again",
        path = path.display()
    )]
    Truncated {
        /// Which file.
        path: PathBuf,
        /// Bytes announced.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// Labels and images do not pair up.
    #[error(
        "{images_path} holds {images} images but {labels_path} holds {labels} labels; the two files do not belong together",
        images_path = images_path.display(), labels_path = labels_path.display()
    )]
    CountMismatch {
        /// The image file.
        images_path: PathBuf,
        /// The label file.
        labels_path: PathBuf,
        /// How many images.
        images: usize,
        /// How many labels.
        labels: usize,
    },
    /// A folder or archive holds no image.
    #[error(
        "{path}: no images found; expected .png, .jpg or .gif files, one tar archive of them, or the four MNIST files (train-images-idx3-ubyte[.gz], ...)",
        path = .0.display()
    )]
    NoImages(PathBuf),
    /// An image cannot be decoded.
    #[error("{name}: cannot be decoded as an image: {reason}; repair or remove it")]
    BrokenImage {
        /// File, or archive and entry.
        name: String,
        /// What the decoder said.
        reason: String,
    },
    /// Images of one set differ in size.
    #[error(
        "the images differ in size: {first} is {first_size}, {second} is {second_size} (height x width); bring all to one size"
    )]
    MixedSizes {
        /// One image.
        first: String,
        /// Its height x width.
        first_size: String,
        /// Another image.
        second: String,
        /// Its height x width.
        second_size: String,
    },
    /// There is no test part where one was asked for.
    #[error(
        "{path}: has no separate test part (a `test` folder or t10k files); split the training part instead",
        path = .0.display()
    )]
    NoTestPart(PathBuf),
    /// The decoded set would not fit.
    #[error("{path}: more than {limit} bytes once decoded; use the streaming reader", path = path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// Text is not UTF-8.
    #[error(
        "{path}: not UTF-8 text at byte {offset} (line {line}); convert it, for example with `iconv -t UTF-8`",
        path = path.display()
    )]
    NotUtf8 {
        /// Which file.
        path: PathBuf,
        /// First bad byte, counted from the start of the file.
        offset: u64,
        /// Its line, from 1.
        line: u64,
    },
    /// A line of a JSONL file is wrong.
    #[error("{path}, line {line}: {reason}", path = path.display())]
    Jsonl {
        /// Which file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// The context does not fit into the data.
    #[error(
        "the context (seq_len = {seq_len}) needs {needed} tokens but the data has {tokens}; lower seq_len or give more text",
        needed = seq_len + 1
    )]
    ContextTooLong {
        /// Asked context.
        seq_len: usize,
        /// Tokens there are.
        tokens: usize,
    },
    /// The batch does not fit into the data.
    #[error("the batch ({batch}) is larger than the set ({len} examples); lower the batch size")]
    BatchTooLarge {
        /// Asked batch.
        batch: usize,
        /// Examples there are.
        len: usize,
    },
    /// A setting has no meaning.
    #[error("{0}")]
    Config(String),
    /// A tokenizer file, or what it was asked to do, is wrong.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A saved stream position does not fit the data or the settings.
    #[error("the stream cannot resume: {0}; resume with the data and settings the run began with")]
    Resume(String),
}

/// Shorthand for this crate's results.
pub type Result<T, E = DataError> = std::result::Result<T, E>;

impl DataError {
    /// Attaches `path` to an I/O error, with absence told apart.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> DataError + '_ {
        move |source| match source.kind() {
            std::io::ErrorKind::NotFound => DataError::Missing(path.to_owned()),
            _ => DataError::Io {
                path: path.to_owned(),
                source,
            },
        }
    }

    pub(crate) fn format(path: &Path, reason: impl Into<String>) -> DataError {
        DataError::Format {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}
