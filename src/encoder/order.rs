//! What device threads are told about models, and when each of them does it.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::schedule::Buckets;
use super::types::{EncoderFactory, LoadError};
use crate::chip::ChipSize;
use crate::embedding::ModelDigest;

/// One thing to do for a model on one device thread. Dropped, it tells whoever waits for it.
pub enum Order {
    Load(Load),
    Warm(Warm),
    Unload(Unload),
}

/// Make a model's encoder.
pub struct Load {
    pub model: ModelDigest,
    pub chip_size: ChipSize,
    pub factory: EncoderFactory,
    pub done: oneshot::Sender<Result<(), LoadError>>,
}

/// Run a model's next batch size for the first time.
pub struct Warm {
    pub model: ModelDigest,
    pub chip_size: ChipSize,
    /// Never empty.
    pub sizes: VecDeque<usize>,
    pub done: oneshot::Sender<Result<(), LoadError>>,
}

/// Drop a model's encoder, once none of its chips waits.
pub struct Unload {
    pub model: ModelDigest,
    pub done: oneshot::Sender<()>,
}

/// The orders of one device thread. While chips wait, orders and batches take turns, so that a model that is loaded
/// delays chips no more than other chips do.
#[derive(Default)]
pub struct Desk {
    orders: VecDeque<Order>,
    turn: Turn,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Turn {
    #[default]
    Order,
    Batch,
}

impl Warm {
    /// The first of these sizes comes first.
    pub fn all(load: Load, buckets: &Buckets) -> Self {
        let Load { model, chip_size, done, factory: _ } = load;
        Self { model, chip_size, sizes: buckets.sizes().iter().copied().collect(), done }
    }
}

impl Desk {
    /// What has begun goes on before anything else begins.
    pub fn push(&mut self, order: Order) {
        match order {
            Order::Warm(_) => self.orders.push_front(order),
            Order::Load(_) | Order::Unload(_) => self.orders.push_back(order),
        }
    }

    /// Takes the next order, unless it is a batch's turn and `chips` wait, or the order is to wait for a model's chips.
    pub fn next_order(&mut self, chips: usize, waiting: impl Fn(ModelDigest) -> usize) -> Option<Order> {
        if self.turn == Turn::Batch && chips > 0 {
            return None;
        }
        if let Some(Order::Unload(Unload { model, .. })) = self.orders.front()
            && waiting(*model) > 0
        {
            return None;
        }
        let order = self.orders.pop_front()?;
        self.turn = Turn::Batch;
        Some(order)
    }

    /// After a batch it is an order's turn.
    pub fn batch_taken(&mut self) {
        self.turn = Turn::Order;
    }

    /// Takes every order out.
    pub fn clear(&mut self) -> VecDeque<Order> {
        std::mem::take(&mut self.orders)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: ModelDigest = ModelDigest::new([1; 32]);

    fn unload() -> Order {
        Order::Unload(Unload { model: MODEL, done: oneshot::channel().0 })
    }

    fn warm() -> Order {
        let chip_size = ChipSize { height: 1, width: 1 };
        let sizes = VecDeque::from([1]);
        Order::Warm(Warm { model: MODEL, chip_size, sizes, done: oneshot::channel().0 })
    }

    #[test]
    fn orders_and_batches_take_turns_while_chips_wait() {
        let mut desk = Desk::default();
        for _ in 0..3 {
            desk.push(warm());
        }
        assert!(desk.next_order(5, |_| 0).is_some());
        assert!(desk.next_order(5, |_| 0).is_none(), "it is a batch's turn");
        desk.batch_taken();
        assert!(desk.next_order(5, |_| 0).is_some());
        assert!(desk.next_order(0, |_| 0).is_some(), "no chip waits");
        assert!(desk.next_order(0, |_| 0).is_none());
    }

    #[test]
    fn an_unload_waits_for_its_chips_and_what_has_begun_goes_first() {
        let mut desk = Desk::default();
        desk.push(unload());
        assert!(desk.next_order(2, |_| 1).is_none());
        desk.push(warm());
        assert!(matches!(desk.next_order(2, |_| 1), Some(Order::Warm(_))));
        desk.batch_taken();
        assert!(matches!(desk.next_order(1, |_| 0), Some(Order::Unload(_))));
    }
}
