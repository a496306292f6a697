//! How messages quote text from outside the program.

use std::borrow::Cow;

/// `text` on one line, without anything that could act on a terminal.
pub(crate) fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Maximum number of characters of external text that a message repeats.
const EXCERPT_MAX: usize = 120;

const ELLIPSIS: &str = "…";

/// The beginning of `text` on one line, with an ellipsis for the omitted rest: how a message
/// repeats what a caller wrote.
pub(crate) fn excerpt(text: &str) -> String {
    match text.char_indices().nth(EXCERPT_MAX) {
        None => one_line(text),
        Some((end, _)) => format!("{}{ELLIPSIS}", one_line(&text[..end])),
    }
}

/// `message` truncated to at most `bytes_max` bytes, including an ellipsis for the omitted rest.
pub(crate) fn bounded(message: &str, bytes_max: usize) -> Cow<'_, str> {
    if message.len() <= bytes_max {
        return Cow::Borrowed(message);
    }
    let end = message.floor_char_boundary(bytes_max.saturating_sub(ELLIPSIS.len()));
    Cow::Owned(format!("{}{ELLIPSIS}", &message[..end]))
}

/// The first `most` items on one line, and how many more there are.
pub(crate) fn listed<T: AsRef<str>>(items: &[T], most: usize) -> String {
    let first = items.iter().take(most).map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    match items.len().saturating_sub(most) {
        0 => one_line(&first),
        more => one_line(&format!("{first} and {more} more")),
    }
}

/// The element of `known` that is most similar to `name`.
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
    fn a_long_text_is_repeated_by_its_beginning() {
        assert_eq!(excerpt("short\ntext"), "short text");
        let whole = "é".repeat(EXCERPT_MAX);
        assert_eq!(excerpt(&whole), whole);
        assert_eq!(excerpt(&"é".repeat(1 << 20)), format!("{whole}…"));
        assert_eq!(bounded("1234", 4), "1234");
        assert_eq!(bounded("12345678", 7), "1234…");
        assert_eq!(bounded("éééé", 7), "éé…", "no character is cut");
    }

    #[test]
    fn of_many_items_the_first_are_listed() {
        for (items, expected) in [
            (&[][..], ""),
            (&["a"], "a"),
            (&["a", "b\n"], "a, b "),
            (&["a", "b", "c", "d"], "a, b and 2 more"),
        ] {
            assert_eq!(listed(items, 2), expected);
        }
    }

    #[test]
    fn control_characters_become_spaces() {
        assert_eq!(one_line("a\r\nb\u{1b}[2J\u{85}c"), "a  b [2J c");
    }
}
