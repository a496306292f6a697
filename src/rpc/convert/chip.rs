//! Chips as they are sent, and warnings about them.

use super::super::problem::Problem;
use crate::chip::{AskedPixelSize, ChipWarning, Modality, OrientedBox, PixelSizeRule, SourceChip, View};
use crate::reason::Reason;
use crate::wire;

/// A chip without its observation.
pub fn source_chip(chip: wire::Chip) -> Result<SourceChip, Problem> {
    let modality = modality("modality", chip.modality)?
        .ok_or_else(|| Problem::invalid(Reason::ModalityUnknown, "modality", "modality is not set"))?;
    let pixel_size = PixelSizeRule::Asked(AskedPixelSize::new(chip.pixel_size_x_m, chip.pixel_size_y_m)?);
    let oriented_box = chip.oriented_box.map(oriented_box).transpose()?;
    Ok(SourceChip { image: chip.image, view: View { modality, pixel_size, oriented_box } })
}

/// `None` where the modality is not set.
pub fn modality(field: &str, number: i32) -> Result<Option<Modality>, Problem> {
    match wire::Modality::try_from(number) {
        Ok(wire::Modality::Optical) => Ok(Some(Modality::Optical)),
        Ok(wire::Modality::Sar) => Ok(Some(Modality::Sar)),
        Ok(wire::Modality::Unspecified) => Ok(None),
        Err(_) => {
            Err(Problem::invalid(Reason::ModalityUnknown, field, format!("modality {number} is unknown")))
        }
    }
}

/// The warnings about a chip.
pub fn warnings(warnings: &[ChipWarning]) -> Vec<wire::Warning> {
    let warning = |warning: &ChipWarning| wire::Warning {
        code: warning.code().name().into(),
        message: warning.to_string(),
    };
    warnings.iter().map(warning).collect()
}

fn oriented_box(cut: wire::OrientedBox) -> Result<OrientedBox, Problem> {
    Ok(OrientedBox::new(cut.center_x, cut.center_y, cut.length, cut.width, cut.angle_deg)?)
}
