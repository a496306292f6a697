//! The linear layers of a model as their kernels need them: one copy, whoever computes with it.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::linear::Linear;
use super::shim::KernelError;
use crate::int8::{Linear8, Rounded};
use crate::weights::coded::Layers;
use crate::weights::tensors::NamedTensors;

/// The layers of a model by name, made by the first network that needs them.
#[derive(Debug, Default)]
pub struct SharedLayers(RefCell<BTreeMap<String, Linear>>);

impl SharedLayers {
    /// `layers` as a model in int8 stores them, with their biases among `tensors`.
    ///
    /// # Panics
    /// If a bias is missing or of another length.
    pub fn stored(layers: &Layers, tensors: &NamedTensors) -> Self {
        let layer = |(name, weight): (&String, &Rounded)| {
            let bias = tensors.get(&format!("{name}.bias")).unwrap_or_else(|| panic!("{name} has no bias"));
            (name.clone(), Linear::int8(Linear8::new(weight, &bias.values)))
        };
        Self(RefCell::new(layers.iter().map(layer).collect()))
    }

    /// A handle of the layer with this name, which `make` makes if it is the first to be asked for.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn layer(
        &self,
        name: &str,
        make: impl FnOnce() -> Result<Linear, KernelError>,
    ) -> Result<Linear, KernelError> {
        if let Some(layer) = self.0.borrow().get(name) {
            return Ok(layer.handle());
        }
        let layer = make()?;
        let handle = layer.handle();
        self.0.borrow_mut().insert(name.to_owned(), layer);
        Ok(handle)
    }

    /// Whether the tensor with this name is part of a layer here, which has what it needs of it.
    pub fn has(&self, tensor: &str) -> bool {
        tensor.rsplit_once('.').is_some_and(|(layer, _)| self.0.borrow().contains_key(layer))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tch::{Device, Kind, Tensor};

    use super::super::linear::Plan;
    use super::super::shim::Activation;
    use super::*;
    use crate::arithmetic::Kernel;

    #[test]
    fn a_layer_is_made_once_and_one_that_cannot_be_made_is_asked_for_again() {
        let layers = SharedLayers::default();
        let made = Cell::new(0);
        let make = || {
            made.set(made.get() + 1);
            let options = (Kind::Float, Device::Cpu);
            Linear::new(
                Tensor::ones([8, 4], options),
                Tensor::ones([8], options),
                &Plan::only(Kernel::OneDnn, 2),
            )
        };
        let mismatch = || {
            let options = (Kind::Float, Device::Cpu);
            Linear::new(
                Tensor::ones([4], options),
                Tensor::ones([8], options),
                &Plan::only(Kernel::OneDnn, 2),
            )
        };
        assert!(layers.layer("a.b", mismatch).is_err() && !layers.has("a.b.weight"));
        for _ in 0..2 {
            let layer = layers.layer("a.b", make).expect("it runs");
            let x = Tensor::ones([2, 4], (Kind::Float, Device::Cpu));
            assert_eq!(layer.forward(&x, Activation::None).sum(Kind::Float).double_value(&[]), 80.0);
        }
        assert_eq!(made.get(), 1);
        assert!(layers.has("a.b.weight") && layers.has("a.b.bias"));
        assert!(!layers.has("a.weight") && !layers.has("a.b"));
    }
}
