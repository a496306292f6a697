//! Lists in pages.

use super::problem::Problem;

/// Items of a page, unless the caller says otherwise.
const PAGE_DEFAULT: u32 = 100;
const PAGE_MAX: u32 = 1000;

/// # Errors
/// More than a page may have.
pub fn page_size(asked: u32) -> Result<usize, Problem> {
    match asked {
        0 => Ok(PAGE_DEFAULT as usize),
        1..=PAGE_MAX => Ok(asked as usize),
        _ => {
            let message = format!("page_size is {asked}, the limit is {PAGE_MAX}");
            Err(Problem::invalid("PAGE_SIZE_INVALID", "page_size", message).with_metadata("limit", PAGE_MAX))
        }
    }
}

/// The answer to a token that no page ended with.
pub fn bad_token() -> Problem {
    Problem::invalid("PAGE_TOKEN_INVALID", "page_token", "page_token comes from no earlier answer")
}
