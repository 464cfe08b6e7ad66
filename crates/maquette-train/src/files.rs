//! Writing so that a reader, or a kill, never meets half a file.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::TrainError;

/// Names of unfinished files and folders start with this; they are removed when a run is opened.
pub(crate) const UNFINISHED: &str = ".unfinished-";

/// Writes `bytes` to `path`: a temporary file beside it, fsync, rename, fsync of the folder.
///
/// # Errors
/// [`TrainError::Io`]; `path` then still holds what it held before.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let folder = parent(path);
    let mut file = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempfile_in(&folder)
        .map_err(TrainError::io("write", path))?;
    file.write_all(bytes)
        .and_then(|()| file.as_file().sync_all())
        .map_err(TrainError::io("write", path))?;
    readable_by_all(file.path()).map_err(TrainError::io("write", path))?;
    file.persist(path)
        .map_err(|error| TrainError::io("write", path)(error.error))?;
    sync_folder(&folder)
}

/// Fills a new folder with `fill` and gives it its name only when everything in it is on disk.
///
/// # Errors
/// Whatever `fill` returns, or [`TrainError::Io`]; nothing is then left under `path`.
pub fn create_folder_atomic(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    let parent = parent(path);
    fs::create_dir_all(&parent).map_err(TrainError::io("create", &parent))?;
    let folder = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempdir_in(&parent)
        .map_err(TrainError::io("create", path))?;
    fill(folder.path())?;
    sync_folder(folder.path())?;
    readable_by_all(folder.path()).map_err(TrainError::io("create", path))?;
    fs::rename(folder.path(), path).map_err(TrainError::io("create", path))?;
    // The folder now lives under its final name: nothing is left for the guard to remove.
    let _ = folder.keep();
    sync_folder(&parent)
}

/// Creates a folder and its parents.
///
/// # Errors
/// [`TrainError::Io`].
pub fn create_folder(path: &Path) -> Result<(), TrainError> {
    fs::create_dir_all(path).map_err(TrainError::io("create", path))
}

/// Reads a whole text file.
///
/// # Errors
/// [`TrainError::Io`], also when it is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, TrainError> {
    fs::read_to_string(path).map_err(TrainError::io("read", path))
}

/// Removes what a kill left behind in `folder`.
pub(crate) fn remove_unfinished(folder: &Path) -> Result<(), TrainError> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            continue;
        }
        let path = entry.path();
        let removed = match path.is_dir() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        removed.map_err(TrainError::io("remove", &path))?;
    }
    Ok(())
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Temporary files are created private; a run folder is meant to be shared.
#[cfg(unix)]
fn readable_by_all(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = if path.is_dir() { 0o755 } else { 0o644 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn readable_by_all(_path: &Path) -> std::io::Result<()> {
    Ok(())
}

/// A rename is durable only once the folder that holds the name is.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> Result<(), TrainError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(TrainError::io("sync", folder))
}

#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> Result<(), TrainError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_folder_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("step-1");
        let failed = create_folder_atomic(&path, |folder| {
            write_atomic(&folder.join("a"), b"1")?;
            Err(TrainError::other("no"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_write_replaces_the_whole_file() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.json");
        write_atomic(&path, b"a longer first text").unwrap();
        write_atomic(&path, b"short").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_unfinished_things_are_removed() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join(".unfinished-x")).unwrap();
        fs::write(root.path().join(".unfinished-y"), b"").unwrap();
        fs::write(root.path().join("kept"), b"").unwrap();
        remove_unfinished(root.path()).unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
