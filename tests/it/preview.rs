//! GetChipPreview: kept chips as pictures, compared with pixels that other programs read or that a test wrote itself.

use std::io::Cursor;

use image::{Rgb, RgbImage};
use shipreid::chip::Modality;
use shipreid::client::{Client, chip};
use shipreid::wire::{
    Chip, CreateGalleryRequest, EnrollRequest, GetChipPreviewRequest, GetChipPreviewResponse, Observation,
    OrientedBox,
};
use tempfile::TempDir;
use tiff::encoder::TiffEncoder;
use tiff::encoder::colortype::{Gray16, Gray32Float};
use tonic::{Code, Status};

use crate::galleries::{GALLERY, create, data_in, enroll, optical, ready, refusal, vector, with_chip};
use crate::server::{details, start};

fn case(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/cases/images/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn read(file: &[u8]) -> RgbImage {
    image::load_from_memory(file).unwrap().into_rgb8()
}

fn png(picture: &RgbImage) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    picture.write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

async fn preview(client: &Client, id: &str, side_max: u32) -> Result<GetChipPreviewResponse, Status> {
    let request =
        GetChipPreviewRequest { gallery: GALLERY.into(), entry_id: id.into(), max_side_pixels: side_max };
    Ok(client.galleries().get_chip_preview(request).await?.into_inner())
}

/// Enrols a chip and gets its picture, of which the answer must say the size.
async fn drawn(client: &Client, sent: Chip, side_max: u32) -> RgbImage {
    let modality = sent.modality;
    let entry = EnrollRequest { overwrite: true, ..with_chip("drawn", sent) };
    let answers = enroll(client, vec![entry]).await;
    assert_eq!(answers[0].error, None);
    let preview = preview(client, "drawn", side_max).await.unwrap();
    let header = image::ImageReader::new(Cursor::new(&preview.png)).with_guessed_format().unwrap();
    assert_eq!(header.format(), Some(image::ImageFormat::Png));
    let picture = image::load_from_memory(&preview.png).unwrap();
    assert_eq!(picture.color(), image::ColorType::Rgb8);
    assert_eq!((picture.width(), picture.height()), (preview.width_pixels, preview.height_pixels));
    assert_eq!(preview.modality, modality);
    picture.into_rgb8()
}

/// 40 x 130 amplitudes with a maximum of 1,300, as they are stored and as the model sees them.
fn amplitudes() -> (Vec<f32>, RgbImage) {
    let value = |place: u32| ((place * 37) % 1301) as f32;
    let stretched = |x: u32, y: u32| Rgb([(value(y * 40 + x) / 1300.0 * 255.0) as u8; 3]);
    ((0..40 * 130).map(value).collect(), RgbImage::from_fn(40, 130, stretched))
}

#[tokio::test]
async fn a_preview_shows_what_the_model_sees_before_its_resize() {
    use Modality::{Optical, Sar};
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    create(&client, GALLERY).await;
    let (stored, stretched) = amplitudes();
    let mut float = Cursor::new(Vec::new());
    TiffEncoder::new(&mut float).unwrap().write_image::<Gray32Float>(40, 130, &stored).unwrap();
    let mut wide = Cursor::new(Vec::new());
    let words: Vec<u16> = stored.iter().map(|value| *value as u16).collect();
    TiffEncoder::new(&mut wide).unwrap().write_image::<Gray16>(40, 130, &words).unwrap();
    let clipped = |x, y| Rgb([words[(y * 40 + x) as usize].min(255) as u8; 3]);
    let clipped = RgbImage::from_fn(40, 130, clipped);
    let picture = RgbImage::from_fn(50, 120, |x, y| Rgb([x as u8, y as u8, 90]));
    for (name, file, modality, expected) in [
        ("optical PNG", png(&picture), Optical, picture.clone()),
        ("float SAR", float.into_inner(), Sar, stretched.clone()),
        ("16-bit SAR", wide.get_ref().clone(), Sar, stretched),
        ("16-bit optical", wide.into_inner(), Optical, clipped),
        ("turned upside down", case("orientation3.tif"), Optical, read(&case("orientation3.expected.png"))),
        ("turned on its side", case("orientation6.tif"), Optical, read(&case("orientation6.expected.png"))),
        (
            "11 bits in 16",
            case("optical_rgb_11bit.tif"),
            Optical,
            read(&case("optical_rgb_11bit.expected.png")),
        ),
        ("a palette", case("optical_palette.tif"), Optical, read(&case("optical_palette.expected.png"))),
    ] {
        assert!(drawn(&client, chip(file, modality), 0).await == expected, "{name}");
    }
    // The pixels without data are black in both, and do not decide the stretch.
    let holed = drawn(&client, chip(case("sar_u16_nodata65535.tif"), Sar), 0).await;
    let filled = drawn(&client, chip(case("sar_u16_nodata65535.expected.tif"), Sar), 0).await;
    assert!(holed == filled && holed.pixels().any(|pixel| pixel.0 == [255; 3]));

    let cut = OrientedBox { center_x: 25.0, center_y: 60.0, length: 40.0, width: 10.0, angle_deg: 0.0 };
    let cut = Chip { oriented_box: Some(cut), ..chip(png(&picture), Optical) };
    let expected = image::imageops::crop_imm(&picture, 20, 40, 10, 40).to_image();
    assert!(drawn(&client, cut, 0).await == expected, "the box is cut");
    server.stop().await;
}

#[tokio::test]
async fn a_large_chip_is_reduced_in_proportion_and_a_small_one_is_not_enlarged() {
    let folder = TempDir::new().unwrap();
    let (server, client) = start(&[&data_in(&folder)]).await;
    create(&client, GALLERY).await;
    // Two halves: far from their border, every filter leaves them as they are.
    let halves = |width, height| {
        RgbImage::from_fn(width, height, |_, y| Rgb(if y < height / 2 { [200, 10, 30] } else { [5, 6, 7] }))
    };
    for (size, side_max, expected) in [
        ((600, 1500), 0, (205, 512)),
        ((600, 1500), 1024, (410, 1024)),
        ((600, 1500), 100, (40, 100)),
        ((600, 1500), 1, (1, 1)),
        ((1500, 600), 100, (100, 40)),
        ((60, 150), 0, (60, 150)),
        ((60, 150), 150, (60, 150)),
        ((60, 150), 149, (60, 149)),
    ] {
        let picture = drawn(&client, chip(png(&halves(size.0, size.1)), Modality::Optical), side_max).await;
        assert_eq!(picture.dimensions(), expected, "{size:?} in {side_max}");
        if expected.1 > 20 {
            let last = (expected.0 - 1, expected.1 - 1);
            assert_eq!(
                (picture.get_pixel(0, 0).0, picture.get_pixel(last.0, last.1).0),
                ([200, 10, 30], [5, 6, 7])
            );
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn a_preview_that_cannot_be_given_says_why() {
    let folder = TempDir::new().unwrap();
    let data = data_in(&folder);
    let (server, client) = start(&[&data]).await;
    create(&client, GALLERY).await;
    let bare = CreateGalleryRequest { name: "bare".into(), keep_chips: Some(false), ..Default::default() };
    client.galleries().create_gallery(bare).await.unwrap();
    let answers = enroll(
        &client,
        vec![with_chip("kept", optical()), ready("vector", "", vector(0, 0.0), Observation::default())],
    )
    .await;
    assert!(answers.iter().all(|answer| answer.error.is_none()));
    let forgotten = EnrollRequest { gallery: "bare".into(), ..with_chip("kept", optical()) };
    assert_eq!(enroll(&client, vec![forgotten]).await[0].error, None);

    let request = |gallery: &str, id: &str, side_max| GetChipPreviewRequest {
        gallery: gallery.into(),
        entry_id: id.into(),
        max_side_pixels: side_max,
    };
    for (request, code, reason, field, says) in [
        (
            request(GALLERY, "kept", 1025),
            Code::InvalidArgument,
            "NUMBER_OUT_OF_BOUNDS",
            "max_side_pixels",
            "1025, the limit is 1024",
        ),
        (request(GALLERY, "", 0), Code::InvalidArgument, "TEXT_EMPTY", "entry_id", "entry_id"),
        (request(GALLERY, "a\nb", 0), Code::InvalidArgument, "TEXT_CONTROL", "entry_id", "entry_id"),
        (request("", "kept", 0), Code::InvalidArgument, "GALLERY_NAME_INVALID", "gallery", "gallery name"),
        (request("nowhere", "kept", 0), Code::NotFound, "GALLERY_NOT_FOUND", "", "nowhere"),
        (request(GALLERY, "other", 0), Code::NotFound, "ENTRY_NOT_FOUND", "", "\"other\""),
        (request(GALLERY, "vector", 0), Code::FailedPrecondition, "ENTRY_WITHOUT_CHIP", "", "with its chip"),
        (request("bare", "kept", 0), Code::FailedPrecondition, "GALLERY_WITHOUT_CHIPS", "", "keep_chips"),
    ] {
        let status = client.galleries().get_chip_preview(request).await.unwrap_err();
        let (found, details) = details(&status);
        assert_eq!((status.code(), found.as_str()), (code, reason));
        let faults =
            details.bad_request().map(|request| request.field_violations.clone()).unwrap_or_default();
        assert_eq!(faults.first().map_or("", |fault| fault.field.as_str()), field, "{reason}");
        assert!(status.message().contains(says), "{}", status.message());
    }
    preview(&client, "kept", 1024).await.unwrap();
    server.stop().await;

    // The chip was enrolled when the server still allowed its size.
    let (server, client) = start(&[&data, "chips.pixels_max=1024"]).await;
    let status = preview(&client, "kept", 0).await.unwrap_err();
    assert_eq!(refusal::<()>(Err(status.clone())), (Code::FailedPrecondition, "CHIP_UNREADABLE".into()));
    assert!(status.message().contains("33 x 97 pixels, the limit is 1024"), "{}", status.message());
    server.stop().await;

    let (server, client) = start(&[]).await;
    let refused = refusal(preview(&client, "kept", 0).await);
    assert_eq!(refused, (Code::FailedPrecondition, "NO_DATA_DIR".into()));
    server.stop().await;
}

#[tokio::test]
async fn a_preview_is_refused_where_waiting_chips_take_all_room() {
    let folder = TempDir::new().unwrap();
    let room = ["chips.bytes_max=100000", "encoder.queue_bytes_max=200000"];
    let (server, client) = start(&[&data_in(&folder), room[0], room[1]]).await;
    create(&client, GALLERY).await;
    assert_eq!(enroll(&client, vec![with_chip("kept", optical())]).await[0].error, None);
    // A picture may take as many bytes as its largest size has.
    let status = preview(&client, "kept", 512).await.unwrap_err();
    let (reason, found) = details(&status);
    assert_eq!((status.code(), reason.as_str()), (Code::ResourceExhausted, "QUEUE_BYTES_FULL"));
    assert!(found.retry_info().is_some());
    preview(&client, "kept", 100).await.unwrap();
    server.stop().await;
}
