//! The device on which tests run networks: the CPU, or the device that [`VARIABLE`] names, as in
//! `make gpu-check`.

use tch::Tensor;

use super::runtime::Device;
use crate::arithmetic::{Kernel, Precision};
use crate::processor::Processor;

pub const VARIABLE: &str = "SHIPREID_TEST_DEVICE";

/// How much farther than the CPU's f32 a GPU's may be from values recorded on a CPU.
///
/// Both round every product and sum to 24 bits, but a GPU adds thousands of terms in another,
/// thread-dependent order, and its own `exp` and `erf` differ in the last bits. TF32 would differ by 2^-11 of
/// every factor, some hundred times the CPU's bounds.
const GPU_FACTOR: f64 = 4.0;

/// The device.
///
/// # Panics
/// If it is missing.
pub fn device() -> Device {
    let name = std::env::var(VARIABLE).unwrap_or_else(|_| "cpu".to_owned());
    Device::open(&name).unwrap_or_else(|cause| panic!("{VARIABLE}: {cause}"))
}

/// The kernels of linear layers on it.
pub fn kernels(precision: Precision) -> Vec<Kernel> {
    match device().is_cpu() {
        true => Kernel::candidates(precision, Processor::here()).collect(),
        false => Kernel::of(precision).iter().copied().filter(|kernel| *kernel == Kernel::Aten).collect(),
    }
}

/// The bound on the device for a difference that may be `on_cpu` on the CPU.
pub fn bound(on_cpu: f64) -> f64 {
    if device().is_cpu() { on_cpu } else { GPU_FACTOR * on_cpu }
}

/// Checks a difference against its bound on the device, and prints both for `scripts/gpu_check.py`.
///
/// # Panics
/// If it exceeds the bound.
pub fn check_difference(what: &str, found: f64, on_cpu: f64) {
    let bound = bound(on_cpu);
    println!("difference {found:e} of {bound:e} in {what}");
    assert!(found <= bound, "{what}: {found} > {bound}");
}

/// Requires the cosine of corresponding features to reach 0.999, which bf16 does in every kernel,
/// and prints it.
///
/// # Panics
/// If a pair of rows of `found` and `expected`, [B, D] of unit length, is below that.
pub fn check_direction(what: &str, found: &Tensor, expected: &Tensor) {
    let cosines = (found * expected).sum_dim_intlist([1i64].as_slice(), false, tch::Kind::Float);
    let lowest = cosines.min().double_value(&[]);
    println!("difference {:e} of {:e} in {what}", 1.0 - lowest, 1e-3);
    assert!(lowest >= 0.999, "{what}: cosine {lowest}");
}

/// Requires the cosine of corresponding features to reach 0.997, and 0.999 on average, which int8 does with and
/// without VNNI, and prints the lowest.
///
/// # Panics
/// If `found` and `expected`, [B, D] of unit length, are farther apart.
pub fn check_direction_in_int8(what: &str, found: &Tensor, expected: &Tensor) {
    let cosines = (found * expected).sum_dim_intlist([1i64].as_slice(), false, tch::Kind::Float);
    let (lowest, mean) = (cosines.min().double_value(&[]), cosines.mean(tch::Kind::Float).double_value(&[]));
    println!("difference {:e} of {:e} in {what}", 1.0 - lowest, 3e-3);
    assert!(lowest >= 0.997 && mean >= 0.999, "{what}: cosine {lowest}, on average {mean}");
}

#[test]
fn a_difference_beyond_its_bound_fails() {
    check_difference("at the bound", bound(1e-5), 1e-5);
    let beyond = std::panic::catch_unwind(|| check_difference("beyond", 1.01 * bound(1e-5), 1e-5));
    assert!(beyond.is_err());
    let unit = |values: &[f32]| Tensor::from_slice(values).view([1, 2]);
    check_direction("alike", &unit(&[1.0, 0.0]), &unit(&[1.0, 0.0]));
    let apart = std::panic::catch_unwind(|| check_direction("apart", &unit(&[1.0, 0.0]), &unit(&[0.8, 0.6])));
    assert!(apart.is_err());
}
