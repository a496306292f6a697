//! Restricts which folders a run may read: the paths in a configuration must be under an allowed folder.

use std::io;
use std::path::{Component, Path, PathBuf};

/// The locations to which a configuration's paths may point.
///
/// A path is checked before it is read, so only the operator may have write access to the allowed folders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataRoots {
    /// Anywhere that this process can read: for configurations of the user who started it.
    Anywhere,
    /// Under one of these folders, which are canonical.
    Under(Vec<PathBuf>),
}

/// A path that a run may not read.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error("{0} is outside the allowed folders (training.data_roots of a server, --data-root)")]
    Outside(PathBuf),
    #[error("{path}: {cause}")]
    Unreadable { path: PathBuf, cause: io::Error },
}

impl DataRoots {
    /// Only under these folders, which must exist.
    ///
    /// # Errors
    /// If a folder cannot be found.
    pub fn under(folders: &[PathBuf]) -> Result<Self, RootError> {
        Ok(Self::Under(folders.iter().map(|folder| canonical(folder)).collect::<Result<_, _>>()?))
    }

    /// The path on disk, with links resolved. A relative path is resolved against each allowed folder in
    /// turn, or against the working directory where everything is allowed.
    ///
    /// # Errors
    /// If the path leaves the allowed folders, by its text or through a link, or does not exist. A path whose
    /// text alone leads outside is not looked up, so that the answer reveals nothing about the files there.
    pub fn admit(&self, path: &Path) -> Result<PathBuf, RootError> {
        let Self::Under(roots) = self else {
            return canonical(path);
        };
        let inside = roots.iter().map(|root| (root, root.join(path)));
        let inside = inside.filter(|(root, full)| resolved(full).is_some_and(|text| text.starts_with(root)));
        let inside: Vec<PathBuf> = inside.map(|(_, full)| full).collect();
        let outside = || RootError::Outside(path.to_owned());
        let full = inside.iter().find(|full| full.exists()).or(inside.first()).ok_or_else(outside)?;
        // The error quotes the path as written in the configuration.
        let found =
            full.canonicalize().map_err(|cause| RootError::Unreadable { path: path.to_owned(), cause })?;
        if roots.iter().any(|root| found.starts_with(root)) { Ok(found) } else { Err(outside()) }
    }
}

fn canonical(path: &Path) -> Result<PathBuf, RootError> {
    path.canonicalize().map_err(|cause| RootError::Unreadable { path: path.to_owned(), cause })
}

/// An absolute path without `.` and `..`, from its text alone; `None` where it would climb above
/// the root of the file system.
fn resolved(path: &Path) -> Option<PathBuf> {
    let mut resolved = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                if !resolved.pop() {
                    return None;
                }
            }
            Component::CurDir => {}
            other => resolved.push(other),
        }
    }
    Some(resolved)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// `allowed/set`, `second/other` and `secret/set`, with links from the first to all of them.
    fn folders() -> tempfile::TempDir {
        let place = tempfile::tempdir().expect("a temporary folder");
        for folder in ["allowed/set", "second/other", "secret/set"] {
            fs::create_dir_all(place.path().join(folder)).expect("writable");
        }
        for (link, target) in [("out", "secret"), ("across", "second/other"), ("in", "allowed/set")] {
            symlink(place.path().join(target), place.path().join("allowed").join(link)).expect("writable");
        }
        place
    }

    #[test]
    fn only_what_lies_under_an_allowed_folder_is_admitted() {
        let place = folders();
        let place = place.path().canonicalize().expect("there");
        let roots = DataRoots::under(&[place.join("allowed"), place.join("second")]).expect("there");
        let check = |path: &str, expected: Result<&str, &str>| {
            let path = PathBuf::from(path.replace('@', place.to_str().expect("text")));
            match (roots.admit(&path), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, place.join(expected)),
                (Err(error), Err(expected)) => assert!(error.to_string().ends_with(expected), "{error}"),
                (found, _) => panic!("{}: {found:?}", path.display()),
            }
        };
        let outside = Err("is outside the allowed folders (training.data_roots of a server, --data-root)");
        check("set", Ok("allowed/set"));
        check("other", Ok("second/other"));
        check("@/second/other", Ok("second/other"));
        check("in", Ok("allowed/set"));
        check("across", Ok("second/other"));
        check("set/../set/.", Ok("allowed/set"));
        check("out", outside);
        check("out/set", outside);
        check("@/secret/set", outside);
        check("../secret/set", outside);
        check("set/../../secret/set", outside);
        check("../../../../../../../../etc/passwd", outside);
        check("@/allowed/../secret/nothing", outside);
        check("nothing", Err("nothing: No such file or directory (os error 2)"));
    }

    #[test]
    fn a_folder_whose_name_begins_like_an_allowed_one_is_not_under_it() {
        let place = folders();
        let place = place.path().canonicalize().expect("there");
        fs::create_dir(place.join("allowed-not")).expect("writable");
        let roots = DataRoots::under(&[place.join("allowed")]).expect("there");
        assert!(matches!(roots.admit(&place.join("allowed-not")), Err(RootError::Outside(_))));
        assert!(matches!(roots.admit(Path::new("../allowed-not")), Err(RootError::Outside(_))));
    }

    #[test]
    fn anywhere_is_wherever_a_file_can_be_found() {
        let place = folders();
        let through_link = place.path().join("allowed/out/set");
        let expected = place.path().canonicalize().expect("there").join("secret/set");
        assert_eq!(DataRoots::Anywhere.admit(&through_link).expect("there"), expected);
        assert!(DataRoots::Anywhere.admit(&place.path().join("nothing")).is_err());
        assert!(DataRoots::under(&[place.path().join("nothing")]).is_err());
    }
}
