//! Paths as shown to the owner of a job: relative to the folder that contains them. The location of that folder on the
//! server is not disclosed.

use std::path::{Path, PathBuf};

use super::settings::Settings;

/// Folders of the server, of which only the content is disclosed.
#[derive(Clone, Debug, Default)]
pub struct ShownPaths(Vec<String>);

impl ShownPaths {
    /// For texts about a job in `folder`.
    pub fn of_job(settings: &Settings, folder: &Path) -> Self {
        let data_dir = settings.folder.parent().unwrap_or(&settings.folder).to_owned();
        let places = [folder.to_owned(), settings.folder.clone(), data_dir];
        Self::under(settings.data_roots.iter().cloned().chain(places))
    }

    /// These folders as they are named, and with links resolved.
    pub fn under(folders: impl IntoIterator<Item = PathBuf>) -> Self {
        let named = folders.into_iter().flat_map(|folder| {
            let found = folder.canonicalize().ok();
            [Some(folder), found]
        });
        let texts = named.flatten().map(|folder| folder.display().to_string());
        let mut texts: Vec<String> = texts.map(|text| text.trim_end_matches('/').to_owned()).collect();
        texts.retain(|text| text.starts_with('/'));
        // The innermost folder that contains a path counts.
        texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
        texts.dedup();
        Self(texts)
    }

    /// The text with every path in a folder made relative to it; the folder itself is ".".
    pub fn relative(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, folder| without(&text, folder))
    }
}

fn without(text: &str, folder: &str) -> String {
    let of_a_name = |letter: char| letter.is_alphanumeric() || "-_.".contains(letter);
    let (mut shown, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find(folder) {
        let (before, found) = rest.split_at(at);
        let after = &found[folder.len()..];
        let begins = !before.ends_with(|letter| of_a_name(letter) || letter == '/');
        shown.push_str(before);
        rest = match (begins, after.strip_prefix('/')) {
            (true, Some(inside)) if inside.starts_with(of_a_name) => inside,
            // Followed by a slash or not, or by the full stop of the sentence.
            (true, inside) if inside.is_some() || !after.trim_start_matches('.').starts_with(of_a_name) => {
                shown.push('.');
                inside.unwrap_or(after)
            }
            _ => {
                shown.push_str(folder);
                after
            }
        };
    }
    shown + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_begins_at_the_innermost_folder_that_it_lies_in() {
        let folders = ["/srv/data", "/srv/data/jobs", "/srv/data/jobs/job-1", "/mnt/sets", "/"];
        let paths = ShownPaths::under(folders.map(PathBuf::from));
        for (text, expected) in [
            ("/srv/data/jobs/job-1/checkpoints/c: no space", "checkpoints/c: no space"),
            ("/srv/data/jobs/job-12/lock", "job-12/lock"),
            ("in /mnt/sets/a.tif and \"/mnt/sets/b.tif\"", "in a.tif and \"b.tif\""),
            ("/mnt/sets is empty; /mnt/sets/ too", ". is empty; . too"),
            ("nothing in /mnt/sets.", "nothing in .."),
            ("/mnt/sets2/a and /mnt/sets.old/b", "/mnt/sets2/a and /mnt/sets.old/b"),
            ("/other/mnt/sets/a", "/other/mnt/sets/a"),
            ("step 3 of 7, loss 1/2", "step 3 of 7, loss 1/2"),
        ] {
            assert_eq!(paths.relative(text), expected, "{text}");
        }
    }
}
