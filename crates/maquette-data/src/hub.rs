//! `hf://` paths: models, tokenizers and data sets of the Hugging Face hub, fetched once into its cache.
//!
//! The cache is the one that Python's `huggingface_hub` uses (`HF_HOME`), so what either has fetched is
//! there for the other, with a network or without.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::{DataError, Result};

/// What a hub path begins with.
pub const SCHEME: &str = "hf://";

/// `hf://org/name`, `hf://org/name@revision`, `hf://org/name/file`, and the same after
/// `hf://datasets/` for data sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubPath {
    /// Whether it is a data set, not a model.
    pub dataset: bool,
    /// `org/name`.
    pub repo: String,
    /// A branch, a tag or a commit; `main` unless named.
    pub revision: String,
    /// One file of it, if only that is meant.
    pub file: Option<String>,
}

impl FromStr for HubPath {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self> {
        let malformed = || {
            error(format!(
                "{text}: write hf://org/name, hf://org/name@revision, hf://org/name/file or \
                 hf://datasets/org/name"
            ))
        };
        let path = text.strip_prefix(SCHEME).ok_or_else(malformed)?;
        let (dataset, path) = match path.strip_prefix("datasets/") {
            Some(path) => (true, path),
            None => (false, path),
        };
        let mut parts = path.trim_end_matches('/').splitn(3, '/');
        let (Some(org), Some(name)) = (parts.next(), parts.next()) else {
            return Err(malformed());
        };
        let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
        let file = parts.next().map(str::to_owned);
        let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        let files = file.iter().flat_map(|file| file.split('/'));
        if ![org, name, revision].into_iter().chain(files).all(plain) {
            return Err(malformed());
        }
        Ok(Self {
            dataset,
            repo: format!("{org}/{name}"),
            revision: revision.to_owned(),
            file,
        })
    }
}

impl fmt::Display for HubPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.dataset { "datasets/" } else { "" };
        write!(f, "{SCHEME}{kind}{}", self.repo)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        self.file.iter().try_for_each(|file| write!(f, "/{file}"))
    }
}

/// Which files of a repository are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Configuration, tokenizer and safetensors.
    Model,
    /// The tokenizer's files.
    Tokenizer,
    /// Everything but what describes it.
    Data,
}

impl Want {
    /// Whether a file of this name is wanted.
    fn takes(self, name: &str) -> bool {
        const TOKENIZER: [&str; 6] = [
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
            "merges.txt",
            "chat_template.jinja",
            "chat_template.json",
        ];
        const MODEL: [&str; 3] = [
            "config.json",
            "generation_config.json",
            "model.safetensors.index.json",
        ];
        let weights = name.starts_with("model") && name.ends_with(".safetensors");
        match self {
            Self::Tokenizer => TOKENIZER.contains(&name),
            Self::Model => {
                let top = !name.contains('/');
                TOKENIZER.contains(&name) || MODEL.contains(&name) || (top && weights)
            }
            Self::Data => !name.starts_with('.') && !name.ends_with("README.md"),
        }
    }

    /// Whether a folder of the cache has all that is wanted.
    #[cfg(feature = "hub")]
    fn whole(self, folder: &Path) -> bool {
        let there = |name: &str| folder.join(name).is_file();
        let tokenizer = there("tokenizer.json") || (there("vocab.json") && there("merges.txt"));
        match self {
            Self::Tokenizer => tokenizer,
            Self::Model => tokenizer && there("config.json") && weights(folder),
            // What a data set consists of, only the hub knows.
            Self::Data => false,
        }
    }
}

/// Whether the weights of a folder are all there, in one file or in shards.
#[cfg(feature = "hub")]
fn weights(folder: &Path) -> bool {
    if folder.join("model.safetensors").is_file() {
        return true;
    }
    let index = std::fs::read_to_string(folder.join("model.safetensors.index.json"));
    let index: Option<serde_json::Value> = index.ok().and_then(|t| serde_json::from_str(&t).ok());
    let shards = index
        .as_ref()
        .and_then(|index| index["weight_map"].as_object());
    shards.is_some_and(|shards| {
        let names = shards.values().filter_map(serde_json::Value::as_str);
        names.into_iter().all(|name| folder.join(name).is_file())
    })
}

fn error(what: String) -> DataError {
    DataError::Hub(what)
}

/// Whether this is a path of the hub.
pub fn is_hub(path: &Path) -> bool {
    path.to_str().is_some_and(|path| path.starts_with(SCHEME))
}

/// The path on this machine: `path` itself, or for one of the hub the folder or file in its cache,
/// fetched where it is not there; `say` is told of each file.
///
/// # Errors
/// [`DataError::Hub`]: not a hub path, nothing of that name, or no network, with what to do by hand.
pub fn local(path: &Path, want: Want, say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    match path.to_str().filter(|_| is_hub(path)) {
        None => Ok(path.to_owned()),
        Some(text) => fetch(&text.parse()?, want, say),
    }
}

#[cfg(not(feature = "hub"))]
fn fetch(path: &HubPath, _: Want, _: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    Err(error(format!(
        "{path}: this program was built without the feature `hub`; fetch it by hand and name its folder"
    )))
}

#[cfg(feature = "hub")]
use remote::fetch;

#[cfg(feature = "hub")]
mod remote {
    use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
    use hf_hub::{Cache, Repo, RepoType};

    use super::*;

    /// The standard cache.
    fn cache() -> Cache {
        match std::env::var_os("HF_HUB_CACHE") {
            Some(path) => Cache::new(path.into()),
            None => Cache::from_env(),
        }
    }

    /// Whether the network may not be asked, as `huggingface_hub` reads it.
    fn offline() -> bool {
        let set = std::env::var("HF_HUB_OFFLINE").unwrap_or_default();
        ["1", "true", "yes", "on"].contains(&set.to_lowercase().as_str())
    }

    pub(super) fn fetch(path: &HubPath, want: Want, say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
        let cache = cache();
        let kind = match path.dataset {
            true => RepoType::Dataset,
            false => RepoType::Model,
        };
        let repo = Repo::with_revision(path.repo.clone(), kind, path.revision.clone());
        if let Some(found) = cached(&cache, &repo, path, want) {
            return Ok(found);
        }
        let by_hand = |cause: &str| unreachable_hub(path, cause, &cache, &repo);
        if offline() {
            let cause = "HF_HUB_OFFLINE is set and the cache does not have all of it";
            return partly_cached(&cache, &repo, path).ok_or_else(|| by_hand(cause));
        }
        match download(&cache, repo.clone(), path, want, say) {
            Ok(found) => Ok(found),
            Err(Failure::Named(what)) => Err(error(format!("{path}: {what}"))),
            Err(Failure::Api(cause)) => {
                partly_cached(&cache, &repo, path).ok_or_else(|| by_hand(&explained(&cause)))
            }
        }
    }

    /// What is in the cache, if it is all that is wanted.
    fn cached(cache: &Cache, repo: &Repo, path: &HubPath, want: Want) -> Option<PathBuf> {
        let files = cache.repo(repo.clone());
        if let Some(file) = &path.file {
            return files.get(file);
        }
        snapshot(cache, repo).filter(|folder| want.whole(folder))
    }

    /// Without a network what is there must do.
    fn partly_cached(cache: &Cache, repo: &Repo, path: &HubPath) -> Option<PathBuf> {
        let folder = snapshot(cache, repo).filter(|_| path.file.is_none())?;
        let mut files = std::fs::read_dir(&folder).ok()?;
        files.next().is_some().then_some(folder)
    }

    /// The folder of the revision in the cache.
    fn snapshot(cache: &Cache, repo: &Repo) -> Option<PathBuf> {
        let root = cache.path().join(repo.folder_name());
        let named = std::fs::read_to_string(root.join("refs").join(repo.revision()));
        // A commit stands for itself.
        let commit = named.map_or_else(|_| repo.revision().to_owned(), |c| c.trim().to_owned());
        let folder = root.join("snapshots").join(commit);
        folder.is_dir().then_some(folder)
    }

    enum Failure {
        Named(String),
        Api(ApiError),
    }

    impl From<ApiError> for Failure {
        fn from(error: ApiError) -> Self {
            Self::Api(error)
        }
    }

    fn download(
        cache: &Cache,
        repo: Repo,
        path: &HubPath,
        want: Want,
        say: &mut dyn FnMut(&str),
    ) -> std::result::Result<PathBuf, Failure> {
        let api: Api = ApiBuilder::from_env()
            .with_cache_dir(cache.path().clone())
            .with_progress(false)
            .build()?;
        let remote = api.repo(repo.clone());
        if let Some(file) = &path.file {
            say(&format!("fetching {path}"));
            return Ok(remote.get(file)?);
        }
        say(&format!("asking the hub for {path}"));
        let names = remote
            .info()?
            .siblings
            .into_iter()
            .map(|file| file.rfilename);
        let all: Vec<String> = names.collect();
        let inside = |name: &&String| !Path::new(name).is_absolute() && !name.contains("..");
        let wanted: Vec<&String> = all
            .iter()
            .filter(inside)
            .filter(|n| want.takes(n))
            .collect();
        let weights = wanted.iter().any(|name| name.ends_with(".safetensors"));
        if wanted.is_empty() || (want == Want::Model && !weights) {
            return Err(Failure::Named(lacking(&all, path)));
        }
        for (at, name) in wanted.iter().enumerate() {
            say(&format!("fetching {name} ({} of {})", at + 1, wanted.len()));
            remote.get(name)?;
        }
        snapshot(cache, &repo).ok_or_else(|| Failure::Named("the cache lost it again".to_owned()))
    }

    /// What a repository without what is wanted has instead.
    fn lacking(all: &[String], path: &HubPath) -> String {
        let gguf: Vec<&str> = all
            .iter()
            .map(String::as_str)
            .filter(|name| name.ends_with(".gguf"))
            .collect();
        match gguf.first() {
            Some(first) => format!(
                "holds GGUF files; name one of them, as {path}/{first} (there are {})",
                gguf.join(", ")
            ),
            None => "holds no safetensors; a model saved as pickles is not opened".to_owned(),
        }
    }

    /// The innermost cause, which says what happened.
    fn explained(error: &ApiError) -> String {
        let mut cause: &dyn std::error::Error = error;
        let mut text = cause.to_string();
        while let Some(next) = cause.source() {
            cause = next;
            text = cause.to_string();
        }
        text
    }

    fn unreachable_hub(path: &HubPath, cause: &str, cache: &Cache, repo: &Repo) -> DataError {
        let kind = if path.dataset {
            " --repo-type dataset"
        } else {
            ""
        };
        let file = path
            .file
            .as_deref()
            .map(|f| format!(" {f}"))
            .unwrap_or_default();
        error(format!(
            "cannot fetch {path}: {cause}. By hand: where there is a network run `hf download {}{file}{kind} \
             --revision {} --local-dir DIR`, copy DIR here and name it instead; or copy {} of that machine's \
             cache (~/.cache/huggingface/hub) to {}",
            path.repo,
            path.revision,
            repo.folder_name(),
            cache.path().display(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> HubPath {
        text.parse().unwrap()
    }

    #[test]
    fn paths_are_read_as_they_are_written() {
        for text in [
            "hf://org/name",
            "hf://org/name@v1.0",
            "hf://org/name@v1/dir/model.gguf",
            "hf://datasets/org/name/train.jsonl",
        ] {
            assert_eq!(parse(text).to_string(), text);
        }
        let file = parse("hf://org/name@v1/dir/model.gguf");
        assert_eq!(file.file.as_deref(), Some("dir/model.gguf"));
        assert_eq!(
            (file.repo.as_str(), file.revision.as_str()),
            ("org/name", "v1")
        );
        assert!(parse("hf://datasets/org/name").dataset);
        for bad in [
            "hf://name",
            "hf://org/",
            "hf://org/../x",
            "hf://org/a/../b",
            "hf://org/a@/b",
        ] {
            let error = bad.parse::<HubPath>().unwrap_err().to_string();
            assert!(error.contains("hf://org/name"), "{error}");
        }
    }

    #[test]
    fn only_what_is_needed_is_wanted() {
        let model = |name| Want::Model.takes(name);
        assert!(model("config.json") && model("model-00001-of-00002.safetensors"));
        assert!(!model("pytorch_model.bin") && !model("onnx/model.safetensors"));
        assert!(Want::Tokenizer.takes("tokenizer.json"));
        assert!(!Want::Tokenizer.takes("model.safetensors"));
        assert!(Want::Data.takes("data/train.parquet") && !Want::Data.takes("README.md"));
    }

    #[test]
    fn other_paths_stay_as_they_are() {
        let path = Path::new("runs/a");
        assert_eq!(local(path, Want::Model, &mut |_| {}).unwrap(), path);
    }
}
