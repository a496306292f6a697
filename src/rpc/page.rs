//! Paginated lists.

use prost::Message;

use super::problem::Problem;
use crate::page::PageCursor;
use crate::reason::Reason;

/// Items per page, unless the caller sets a number.
const PAGE_DEFAULT: u32 = 100;
const PAGE_MAX: u32 = 1000;

/// Bytes of a page's items: with the rest of the message, a response stays below the 4 MiB that clients accept by
/// default.
const PAGE_BYTES_MAX: usize = 3 << 20;

/// The room left in a page for items; the first one always fits.
#[derive(Debug)]
struct PageRoom {
    left: usize,
    is_empty: bool,
}

impl Default for PageRoom {
    fn default() -> Self {
        Self { left: PAGE_BYTES_MAX, is_empty: true }
    }
}

impl PageRoom {
    /// Takes room for an item; `false` if there is none, and the page ends before it.
    fn takes(&mut self, bytes: usize) -> bool {
        let left = self.left.checked_sub(bytes);
        let fits = left.is_some() || self.is_empty;
        (self.left, self.is_empty) = (left.unwrap_or(0), false);
        fits
    }
}

/// The leading messages that fit a page, and the position of the last one if not all fit.
///
/// # Errors
/// The first error among the messages that were needed.
pub fn fitting<P, M: Message, E>(
    messages: impl IntoIterator<Item = Result<(P, M), E>>,
) -> Result<(Vec<M>, Option<P>), E> {
    let (mut room, mut last, mut fitting) = (PageRoom::default(), None, Vec::new());
    for message in messages {
        let (place, message) = message?;
        if !room.takes(message.encoded_len()) {
            return Ok((fitting, last));
        }
        fitting.push(message);
        last = Some(place);
    }
    Ok((fitting, None))
}

/// The position after which a page begins; `None` for the first page.
///
/// # Errors
/// The token was not issued for any page.
pub fn after<P: PageCursor>(token: &str) -> Result<Option<P>, Problem> {
    if token.is_empty() {
        return Ok(None);
    }
    let place = P::of_token(token).ok_or_else(|| {
        Problem::invalid(Reason::PageTokenInvalid, "page_token", "page_token comes from no earlier answer")
    })?;
    Ok(Some(place))
}

/// The token of the page after the one that ends at `last`; empty if none follows.
pub fn next_token<P: PageCursor>(last: Option<&P>) -> String {
    last.map(PageCursor::token).unwrap_or_default()
}

/// # Errors
/// The size exceeds the maximum of a page.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_before_it_is_too_large_and_has_an_item() {
        let mut room = PageRoom::default();
        let taken = (0..1000).take_while(|_| room.takes(10 << 10)).count();
        assert_eq!(taken, PAGE_BYTES_MAX / (10 << 10));
        let mut room = PageRoom::default();
        assert!(room.takes(PAGE_BYTES_MAX + 1) && !room.takes(1));
    }

    #[test]
    fn messages_that_fit_are_followed_by_the_place_of_the_last_one() {
        let message = |number: u32| Ok::<_, u32>((number, "x".repeat(10 << 10)));
        let (messages, end) = fitting((0..1000).map(message)).expect("no error");
        assert_eq!(end.map(|end| end as usize + 1), Some(messages.len()));
        assert!((200..310).contains(&messages.len()), "{}", messages.len());
        let (messages, end) = fitting((0..3).map(message)).expect("no error");
        assert_eq!((messages.len(), end), (3, None));
        let failing = (0..3).map(|number| if number == 1 { Err(number) } else { message(number) });
        assert_eq!(fitting(failing), Err(1));
    }
}
