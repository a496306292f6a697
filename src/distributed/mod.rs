//! Processes that train together, on PyTorch's c10d: their places, how they meet, what they exchange, and how they notice
//! that one is lost.

#[cfg(feature = "torch")]
mod c10d;
#[cfg(feature = "torch")]
mod join;
mod place;
mod rank_failure;
#[cfg(feature = "torch")]
mod watch;
#[cfg(feature = "torch")]
mod world;

pub use place::{Place, PlaceError};
pub use rank_failure::RankFailure;

#[cfg(feature = "torch")]
pub use c10d::{C10dError, Store};
#[cfg(feature = "torch")]
pub use join::{Identity, WorldError};
#[cfg(feature = "torch")]
pub use watch::{OnLoss, Patience};
#[cfg(feature = "torch")]
pub use world::World;

#[cfg(all(test, feature = "torch"))]
pub mod test_world;
#[cfg(all(test, feature = "torch"))]
mod tests;
