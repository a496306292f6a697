//! A training job as one page of HTML that needs nothing but itself.

mod chart;
mod history;
mod page;

pub use history::History;
pub use page::page;
