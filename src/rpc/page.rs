//! Lists in pages.

use super::problem::Problem;
use crate::page::PageCursor;
use crate::reason::Reason;

/// Items of a page, unless the caller says otherwise.
const PAGE_DEFAULT: u32 = 100;
const PAGE_MAX: u32 = 1000;

/// The place after which a page begins; `None` for the first page.
///
/// # Errors
/// No page ended with this token.
pub fn after<P: PageCursor>(token: &str) -> Result<Option<P>, Problem> {
    if token.is_empty() {
        return Ok(None);
    }
    let place = P::of_token(token).ok_or_else(|| {
        Problem::invalid(Reason::PageTokenInvalid, "page_token", "page_token comes from no earlier answer")
    })?;
    Ok(Some(place))
}

/// The token of the page behind the one that ends at `last`; empty where none follows.
pub fn next_token<P: PageCursor>(last: Option<&P>) -> String {
    last.map(PageCursor::token).unwrap_or_default()
}

/// # Errors
/// More than a page may have.
pub fn page_size(asked: u32) -> Result<usize, Problem> {
    match asked {
        0 => Ok(PAGE_DEFAULT as usize),
        1..=PAGE_MAX => Ok(asked as usize),
        _ => {
            let message = format!("page_size is {asked}, the limit is {PAGE_MAX}");
            Err(Problem::invalid(Reason::PageSizeInvalid, "page_size", message)
                .with_metadata("limit", PAGE_MAX))
        }
    }
}
