//! Assembles samples into a picture, regardless of the chunks and planes that they come from.

use half::f16;

use super::super::{Pixels, SampleFormat, StoredSample, cmyk_to_rgb, replicate};
use super::chunk::Chunk;
use super::picture::{Colour, Picture};
use super::samples::{Complex, Sample, Showing};
use crate::chip::Modality;

/// A picture under construction.
pub struct Canvas {
    width: usize,
    colour: Colour,
    stored: StoredSample,
    nodata: Option<f64>,
    showing: Showing,
    values: Values,
    /// For each pixel, how many of its colours hold no data; empty until one does.
    hidden: Vec<u8>,
    clipped_samples: usize,
}

enum Values {
    /// The kept samples, interleaved, converted to 8 bits.
    Shown(Vec<u8>),
    Amplitudes(Vec<f32>),
}

/// A row of a chunk, or the part of it inside the picture.
pub struct Row<'a> {
    /// Samples in native byte order.
    pub bytes: &'a [u8],
    pub x: usize,
    pub y: usize,
    pub columns: usize,
    /// Samples per pixel in `bytes`.
    pub channels: usize,
    /// Which sample of a pixel the first of them is.
    pub first: usize,
}

/// The content of a finished canvas.
pub struct Painting {
    pub pixels: Pixels,
    pub nodata_pixels: usize,
    pub clipped_samples: usize,
}

impl Canvas {
    pub fn new(picture: &Picture, modality: Modality) -> Self {
        let pixels = picture.width * picture.height;
        Self {
            width: picture.width,
            colour: picture.colour.clone(),
            stored: picture.stored,
            nodata: picture.nodata,
            showing: showing(picture),
            values: match modality {
                Modality::Optical => Values::Shown(vec![0; pixels * picture.colour.kept()]),
                Modality::Sar => Values::Amplitudes(vec![0.0; pixels]),
            },
            hidden: if picture.nodata.is_some() { vec![0; pixels] } else { Vec::new() },
            clipped_samples: 0,
        }
    }

    /// The function that paints rows of the picture's samples; packed samples have been unpacked to 32 bits.
    pub fn painter(stored: StoredSample) -> fn(&mut Self, &Row<'_>) {
        match (stored.format, stored.bits) {
            (SampleFormat::Unsigned, 8) => Self::paint::<u8>,
            (SampleFormat::Unsigned, 16) => Self::paint::<u16>,
            (SampleFormat::Unsigned, 64) => Self::paint::<u64>,
            (SampleFormat::Unsigned, _) => Self::paint::<u32>,
            (SampleFormat::Signed, 8) => Self::paint::<i8>,
            (SampleFormat::Signed, 16) => Self::paint::<i16>,
            (SampleFormat::Signed, 32) => Self::paint::<i32>,
            (SampleFormat::Signed, _) => Self::paint::<i64>,
            (SampleFormat::Float, 16) => Self::paint::<f16>,
            (SampleFormat::Float, 32) => Self::paint::<f32>,
            (SampleFormat::Float, _) => Self::paint::<f64>,
            (SampleFormat::ComplexSigned, 16) => Self::paint::<Complex<i8>>,
            (SampleFormat::ComplexSigned, 32) => Self::paint::<Complex<i16>>,
            (SampleFormat::ComplexSigned, _) => Self::paint::<Complex<i32>>,
            (SampleFormat::ComplexFloat, 32) => Self::paint::<Complex<f16>>,
            (SampleFormat::ComplexFloat, 64) => Self::paint::<Complex<f32>>,
            (SampleFormat::ComplexFloat, _) => Self::paint::<Complex<f64>>,
        }
    }

    fn paint<T: Sample>(&mut self, row: &Row<'_>) {
        let start = row.y * self.width + row.x;
        let samples = |channel: usize| {
            let pixels = row.bytes.chunks_exact(row.channels * T::BYTES);
            pixels.take(row.columns).map(move |pixel| T::read(&pixel[channel * T::BYTES..]))
        };
        match &mut self.values {
            Values::Amplitudes(values) => {
                for (value, sample) in values[start..].iter_mut().zip(samples(0)) {
                    *value = sample.amplitude();
                }
            }
            Values::Shown(values) => {
                let kept = self.colour.kept();
                let to = &mut values[start * kept..(start + row.columns) * kept];
                if self.showing == Showing::Bits && T::BYTES == 1 && row.channels == kept {
                    to.copy_from_slice(&row.bytes[..row.columns * kept]);
                } else {
                    for channel in 0..row.channels.min(kept - row.first) {
                        let to = to.iter_mut().skip(row.first + channel).step_by(kept);
                        to.zip(samples(channel)).for_each(|(to, sample)| *to = sample.shown(self.showing));
                    }
                }
                if self.showing == Showing::Clipped {
                    let colours = self.colour.colours().saturating_sub(row.first).min(row.channels);
                    let above = |channel| samples(channel).filter(|sample| sample.is_above_bytes()).count();
                    self.clipped_samples += (0..colours).map(above).sum::<usize>();
                }
            }
        }
        if let Some(nodata) = self.nodata {
            let colours = self.colour.colours().saturating_sub(row.first).min(row.channels);
            for channel in 0..colours {
                for (hidden, sample) in self.hidden[start..].iter_mut().zip(samples(channel)) {
                    *hidden += u8::from(sample.is_nodata(nodata));
                }
            }
        }
    }

    /// Paints an omitted chunk: its pixels hold no data.
    pub fn leave_out(&mut self, chunk: &Chunk, channels: usize) {
        if self.hidden.is_empty() {
            self.hidden = vec![0; self.len()];
        }
        let (kept, colours) = (self.colour.kept(), self.colour.colours());
        let channels = chunk.plane..kept.min(chunk.plane + channels);
        let fill = self.shown_nodata();
        for y in chunk.y..chunk.y + chunk.rows {
            let pixels = y * self.width + chunk.x..y * self.width + chunk.x + chunk.columns;
            for pixel in pixels {
                self.hidden[pixel] += channels.clone().filter(|channel| *channel < colours).count() as u8;
                if let Values::Shown(values) = &mut self.values {
                    for channel in channels.clone() {
                        let chroma = channel > 0 && matches!(self.colour, Colour::YCbCr(_));
                        values[pixel * kept + channel] = if chroma { 128 } else { fill };
                    }
                }
            }
        }
    }

    fn len(&self) -> usize {
        match &self.values {
            Values::Shown(values) => values.len() / self.colour.kept(),
            Values::Amplitudes(values) => values.len(),
        }
    }

    fn shown_nodata(&self) -> u8 {
        let nodata = self.nodata.unwrap_or(0.0);
        match (self.stored.format, self.stored.bits) {
            (SampleFormat::Unsigned, bits) => {
                let largest = (u64::MAX >> (64 - bits)) as f64;
                u64::from_nodata(if nodata > largest { largest } else { nodata }).shown(self.showing)
            }
            (SampleFormat::Signed, _) => i64::from_nodata(nodata).shown(self.showing),
            _ => nodata.shown(self.showing),
        }
    }

    pub fn finish(self) -> Painting {
        let colours = self.colour.colours();
        let is_hidden = |hidden: &u8| usize::from(*hidden) >= colours;
        let nodata_pixels = self.hidden.iter().filter(|hidden| is_hidden(hidden)).count();
        let pixels = match self.values {
            Values::Shown(values) => Pixels::Rgb(rgb(values, &self.colour)),
            Values::Amplitudes(values) => {
                let mut values = amplitudes(values, &self.colour, self.stored);
                // A pixel without data is never the maximum that stretches a chip.
                let hidden = values.iter_mut().zip(&self.hidden).filter(|(_, hidden)| is_hidden(hidden));
                hidden.for_each(|(value, _)| *value = 0.0);
                Pixels::Amplitude(values)
            }
        };
        Painting { pixels, nodata_pixels, clipped_samples: self.clipped_samples }
    }
}

fn showing(picture: &Picture) -> Showing {
    let StoredSample { bits, format, .. } = picture.stored;
    match (&picture.colour, format) {
        (Colour::Palette(_), _) => Showing::Bits,
        (_, SampleFormat::Unsigned) if bits < 8 => Showing::Spread { max: (1 << bits) - 1 },
        (_, SampleFormat::Unsigned) if bits == 8 => Showing::Bits,
        (Colour::Gray | Colour::InvertedGray, _) => Showing::Clipped,
        (_, SampleFormat::Unsigned) => Showing::High { shift: u32::from(bits) - 8 },
        _ => Showing::Clipped,
    }
}

fn rgb(mut values: Vec<u8>, colour: &Colour) -> Vec<u8> {
    match colour {
        Colour::Gray => replicate(values),
        Colour::InvertedGray => replicate(values.into_iter().map(|value| 255 - value)),
        Colour::Rgb => values,
        Colour::MultipliedRgb => values.chunks_exact(4).flat_map(divided).collect(),
        Colour::Palette(colours) => {
            values.into_iter().flat_map(|index| colours[usize::from(index)]).collect()
        }
        Colour::Cmyk => cmyk_to_rgb(&values),
        Colour::YCbCr(sampling) => {
            sampling.to_rgb(&mut values);
            values
        }
    }
}

/// Undoes the multiplication of a colour by its alpha, with the reference's division.
fn divided(pixel: &[u8]) -> [u8; 3] {
    let alpha = u32::from(pixel[3]);
    [0, 1, 2].map(|c| match alpha {
        0 => 0,
        255 => pixel[c],
        _ => (u32::from(pixel[c]) * 255 / alpha).min(255) as u8,
    })
}

/// Up to 8 bits, the amplitude is the reference's 8-bit value of a sample; above that, the sample itself.
fn amplitudes(values: Vec<f32>, colour: &Colour, stored: StoredSample) -> Vec<f32> {
    if stored.format != SampleFormat::Unsigned || stored.bits > 8 {
        return values;
    }
    let max = (1 << stored.bits) - 1;
    let shown: Vec<f32> = (0..=max as u8)
        .map(|value| {
            let spread = value.shown(Showing::Spread { max });
            f32::from(match colour {
                Colour::Palette(colours) => colours[usize::from(value)][0],
                Colour::InvertedGray => 255 - spread,
                _ => spread,
            })
        })
        .collect();
    values.into_iter().map(|value| shown[value as usize]).collect()
}
