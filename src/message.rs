//! What messages say of text that others have written.

/// `text` in one line, without anything that could act on a terminal.
pub(crate) fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// The one of `known` that is most like `name`.
pub(crate) fn nearest<T: AsRef<str>>(name: &str, known: impl IntoIterator<Item = T>) -> Option<T> {
    let rated = known.into_iter().map(|known| (strsim::jaro_winkler(name, known.as_ref()), known));
    rated.max_by(|(likeness, _), (other, _)| likeness.total_cmp(other)).map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likest_name_is_found() {
        for (name, expected) in
            [("batch_sise", "batch_size"), ("stepz", "steps"), ("ηταο", "seed"), ("", "seed")]
        {
            assert_eq!(nearest(name, ["batch_size", "steps", "seed"]), Some(expected), "{name}");
        }
        assert_eq!(nearest("steps", [] as [&str; 0]), None);
    }

    #[test]
    fn control_characters_become_spaces() {
        assert_eq!(one_line("a\r\nb\u{1b}[2J\u{85}c"), "a  b [2J c");
    }
}
