//! GetChipPreview: the kept chip of an entry as a picture.

use std::sync::Arc;

use super::super::context::CallContext;
use super::super::convert;
use super::super::problem::Problem;
use super::GalleriesService;
use crate::chip::SourceChip;
use crate::encoder::{EmbedError, Priority};
use crate::gallery::{EntryId, Gallery, GalleryReader};
use crate::reason::Reason;
use crate::wire;

/// Pixels of the longer side, unless the caller sets a number.
const SIDE_DEFAULT: u32 = 512;
/// As many rows as columns of RGB fit the 4 MiB that clients accept by default, even where they do not compress.
const SIDE_MAX: u32 = 1024;

impl GalleriesService {
    pub(super) async fn preview(
        &self,
        context: &CallContext,
        request: wire::GetChipPreviewRequest,
    ) -> Result<wire::GetChipPreviewResponse, Problem> {
        let side_max = side_max(request.max_side_pixels)?;
        let id = convert::entry_id("entry_id", &request.entry_id)?;
        let gallery = self.access.gallery(&context.tenant, &request.gallery).await?;
        let chip = self.kept_chip(&gallery, &id).await?;
        let modality = convert::modality_to_wire(chip.view.modality);
        let caller = convert::caller(context, Priority::Interactive);
        let picture_bytes = side_max as usize * side_max as usize * 3;
        let _room = self.pipeline.admit_images(1, chip.image.len() + picture_bytes)?;
        let preview = self.pipeline.preview(&caller, chip, side_max).await;
        let preview = preview.map_err(|cause| undrawn(&id, cause))?;
        Ok(wire::GetChipPreviewResponse {
            png: preview.png.into(),
            width_pixels: preview.width,
            height_pixels: preview.height,
            modality: modality.into(),
        })
    }

    async fn kept_chip(&self, gallery: &Gallery, id: &EntryId) -> Result<SourceChip, Problem> {
        let read = |snapshot: Arc<dyn GalleryReader>| {
            let id = id.clone();
            self.access.run(move |_| kept_chip(&*snapshot, &id))
        };
        gallery.read(read).await
    }
}

fn kept_chip(snapshot: &dyn GalleryReader, id: &EntryId) -> Result<SourceChip, Problem> {
    if !snapshot.about().keeps_chips {
        let message = "the gallery keeps no chips: it was created with keep_chips = false";
        return Err(Problem::new(Reason::GalleryWithoutChips, message));
    }
    let row = snapshot.find(id)?;
    let row = row.ok_or_else(|| {
        Problem::new(Reason::EntryNotFound, format!("entry \"{id}\" is not in the gallery"))
    })?;
    snapshot.chip(row)?.ok_or_else(|| {
        let message =
            format!("entry \"{id}\" was enrolled by its embedding alone; enrol it again with its chip");
        Problem::new(Reason::EntryWithoutChip, message)
    })
}

fn side_max(asked: u32) -> Result<u32, Problem> {
    match asked {
        0 => Ok(SIDE_DEFAULT),
        1..=SIDE_MAX => Ok(asked),
        _ => {
            let message =
                format!("max_side_pixels is {asked}, the limit is {SIDE_MAX}; 0 stands for {SIDE_DEFAULT}");
            Err(Problem::invalid(Reason::NumberOutOfBounds, "max_side_pixels", message)
                .with_metadata("limit", SIDE_MAX))
        }
    }
}

/// Why a kept chip has no picture. The caller did not send the chip, so no field is invalid.
fn undrawn(id: &EntryId, cause: EmbedError) -> Problem {
    match cause {
        EmbedError::Prepare(cause) => {
            let message =
                format!("the kept chip of entry \"{id}\" cannot be decoded: {cause}; enrol it again");
            Problem::new(Reason::ChipUnreadable, message)
        }
        cause => cause.into(),
    }
}
