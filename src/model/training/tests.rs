//! Each function of training beside the operations that it stands for, forwards and backwards.

use tch::Kind;

use super::super::linear::Plan;
use super::*;
use crate::arithmetic::Kernel;

const CPU: (Kind, tch::Device) = (Kind::Float, tch::Device::Cpu);

/// The function's result, and the gradients of `inputs` for the same gradient of the result.
fn run(inputs: &[Tensor], function: impl Fn(&[Tensor]) -> Tensor) -> Vec<Tensor> {
    let inputs: Vec<Tensor> = inputs.iter().map(|input| input.copy().set_requires_grad(true)).collect();
    let y = function(&inputs);
    let of_y = Tensor::arange(y.numel() as i64, CPU).sin().view(&y.size()[..]).to_kind(y.kind());
    (&y * of_y).sum(y.kind()).backward();
    std::iter::once(y.detach()).chain(inputs.iter().map(Tensor::grad)).collect()
}

fn largest(difference: &Tensor) -> f64 {
    difference.abs().max().double_value(&[])
}

#[test]
fn a_layer_on_tiles_is_as_exact_as_one_in_f32() {
    tch::manual_seed(1);
    if !tiles::fit(&Tensor::zeros([1], CPU)) {
        return;
    }
    // Fewer and more rows than outputs, and ends of every kind within tiles, blocks and parts of the depth.
    for (rows, inputs, outputs) in [(1, 1, 1), (5, 48, 96), (130, 33, 17), (210, 1600, 70), (70, 100, 1000)] {
        let inputs = [
            Tensor::randn([2, rows, inputs], CPU) * 3.0,
            Tensor::randn([outputs, inputs], CPU),
            Tensor::randn([outputs], CPU),
        ];
        let exact = run(&inputs.each_ref().map(|input| input.to_kind(Kind::Double)), |given| {
            given[0].linear(&given[1], Some(&given[2]))
        });
        let in_f32 = run(&inputs, |given| given[0].linear(&given[1], Some(&given[2])));
        let on_tiles = run(&inputs, |given| on_tiles(&given[0], &given[1], &given[2]).expect("shapes match"));
        for (place, exact) in exact.iter().enumerate() {
            let scale = largest(exact).max(1e-3);
            let [found, usual] = [&on_tiles, &in_f32].map(|of| largest(&(&of[place] - exact)) / scale);
            assert!(found <= 2.0 * usual + 3e-7, "{rows} {outputs} {place}: {found} beside {usual}");
            assert_eq!(on_tiles[place].size(), exact.size());
        }
    }
}

#[test]
fn wide_layers_are_on_tiles_and_narrow_ones_are_not() {
    tch::manual_seed(3);
    if !tiles::fit(&Tensor::zeros([1], CPU)) {
        return;
    }
    for (inputs, outputs, is_on_tiles) in [(256, 300, true), (255, 300, false), (300, 255, false)] {
        let [x, weight, bias] = [vec![40, inputs], vec![outputs, inputs], vec![outputs]]
            .map(|size| Tensor::randn(&size[..], CPU));
        let plain = Plan::only(Kernel::Aten, 40);
        let layer = Linear::new(weight.shallow_clone(), bias.shallow_clone(), &plain).expect("ATen");
        let same = linear(&layer, &x).equal(&on_tiles(&x, &weight, &bias).expect("shapes match"));
        assert_eq!(same, is_on_tiles, "{inputs} {outputs}");
    }
}

#[test]
fn a_layer_on_tiles_does_not_depend_on_the_number_of_threads() {
    tch::manual_seed(2);
    if !tiles::fit(&Tensor::zeros([1], CPU)) {
        return;
    }
    let inputs = [Tensor::randn([300, 200], CPU), Tensor::randn([500, 200], CPU), Tensor::randn([500], CPU)];
    let threads = tch::get_num_threads();
    let of_threads = [1, 2, 7].map(|count| {
        tch::set_num_threads(count);
        run(&inputs, |given| on_tiles(&given[0], &given[1], &given[2]).expect("shapes match"))
    });
    tch::set_num_threads(threads);
    for found in &of_threads[1..] {
        // The gradient of the bias is libtorch's sum.
        assert!(found.iter().zip(&of_threads[0]).take(3).all(|(found, expected)| found.equal(expected)));
    }
}

#[test]
fn attention_in_one_function_is_attention() {
    tch::manual_seed(3);
    let (b, n, heads, h) = (3, 37, 4, 16);
    let qkv = [Tensor::randn([b, n, 3 * heads * h], CPU)];
    let expected = run(&qkv, |given| {
        let parts = given[0].view([b, n, 3, heads, h]).permute([2, 0, 3, 1, 4]);
        let [q, k, v] = [0, 1, 2].map(|part| parts.select(0, part));
        let weights = (q.matmul(&k.transpose(-2, -1)) / (h as f64).sqrt()).softmax(-1, Kind::Float);
        weights.matmul(&v).transpose(1, 2).reshape([b, n, heads * h])
    });
    let found = run(&qkv, |given| attention(&given[0], heads).expect("shapes match"));
    for (found, expected) in found.iter().zip(&expected) {
        assert!(found.size() == expected.size() && largest(&(found - expected)) < 1e-5);
    }
}

#[test]
fn what_does_not_fit_is_an_error_of_one_line() {
    let x = Tensor::ones([2, 47], CPU);
    let refused = attention(&x, 4).expect_err("two axes");
    assert_eq!(refused.to_string().lines().count(), 1);
    if tiles::fit(&x) {
        let refused = on_tiles(&x, &Tensor::ones([96, 48], CPU), &Tensor::ones([96], CPU));
        assert_eq!(refused.expect_err("another width").to_string().lines().count(), 1);
    }
}
