//! A training job as one self-contained HTML page.

mod chart;
mod history;
mod page;

pub use history::History;
pub use page::page;
