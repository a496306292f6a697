//! Small text files that detect changes: their last line is a comment with a checksum.

/// Precedes the checksum. It is a comment to TOML, so that programs that know no seals still read the file.
const MARK: &str = "# crc32 ";

/// The file no longer holds what was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its checksum is another one")]
pub struct BrokenSeal;

/// `text`, which is TOML, followed by its checksum.
pub fn seal_text(text: &str) -> String {
    // The empty line keeps the text before it from merging with the comment, whichever single byte changes.
    let sealed = format!("{text}\n");
    let checksum = crc32fast::hash(sealed.as_bytes());
    format!("{sealed}{MARK}{checksum:08x}\n")
}

/// The [sealed](seal_text) text, or an unsealed one from an earlier release.
///
/// # Errors
/// The text was changed since.
pub fn unseal_text(text: &str) -> Result<&str, BrokenSeal> {
    let line = text.strip_suffix('\n').unwrap_or(text);
    let start = line.rfind('\n').map_or(0, |end| end + 1);
    let Some(checksum) = line[start..].strip_prefix(MARK) else { return Ok(text) };
    let found = format!("{:08x}", crc32fast::hash(&text.as_bytes()[..start]));
    if checksum == found { Ok(&text[..start]) } else { Err(BrokenSeal) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "name = \"a\"\ncount = 3\n";

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Read {
        name: String,
        count: u32,
    }

    fn read(bytes: &[u8]) -> Option<Read> {
        toml::from_str(unseal_text(str::from_utf8(bytes).ok()?).ok()?).ok()
    }

    #[test]
    fn a_text_is_read_sealed_or_not() {
        let expected = Read { name: "a".into(), count: 3 };
        assert_eq!(read(TEXT.as_bytes()), Some(Read { name: "a".into(), count: 3 }));
        assert_eq!(read(seal_text(TEXT).as_bytes()), Some(expected));
        assert_eq!(unseal_text(""), Ok(""));
    }

    #[test]
    fn whatever_one_byte_becomes_nothing_else_is_read() {
        let sealed = seal_text(TEXT).into_bytes();
        for place in 0..sealed.len() {
            for byte in 0..=u8::MAX {
                let mut changed = sealed.clone();
                changed[place] = byte;
                let found = read(&changed);
                let same = Read { name: "a".into(), count: 3 };
                assert!(found.is_none_or(|found| found == same), "byte {place} became {byte}");
            }
        }
    }
}
