use std::fs;
use std::io::Write;
use std::path::PathBuf;

use flate2::{Compression, write::GzEncoder};
use maquette_rng::Stream;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::stream::{ImageStream, ImageStreamConfig};
use crate::testing::shared;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn idx_images(n: u32, h: u32, w: u32) -> Vec<u8> {
    let mut bytes = 0x0803u32.to_be_bytes().to_vec();
    for size in [n, h, w] {
        bytes.extend(size.to_be_bytes());
    }
    bytes.extend((0..n * h * w).map(|i| i as u8));
    bytes
}

fn idx_labels(labels: &[u8]) -> Vec<u8> {
    let mut bytes = 0x0801u32.to_be_bytes().to_vec();
    bytes.extend((labels.len() as u32).to_be_bytes());
    bytes.extend(labels);
    bytes
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn png(w: u32, h: u32, colour: bool, value: u8) -> Vec<u8> {
    let mut out = std::io::Cursor::new(Vec::new());
    let image = match colour {
        true => image::RgbImage::from_pixel(w, h, image::Rgb([value, 0, 255])).into(),
        false => {
            image::DynamicImage::from(image::GrayImage::from_pixel(w, h, image::Luma([value])))
        }
    };
    image.write_to(&mut out, image::ImageFormat::Png).unwrap();
    out.into_inner()
}

fn put(folder: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

fn message(path: impl AsRef<Path>) -> String {
    open(path, Split::Train).unwrap_err().to_string()
}

#[test]
fn mnist_layout_plain_and_gzipped() {
    for zip in [false, true] {
        let dir = folder();
        let wrap = |bytes: Vec<u8>| if zip { gz(&bytes) } else { bytes };
        let end = if zip { ".gz" } else { "" };
        put(
            &dir,
            &format!("train-images-idx3-ubyte{end}"),
            wrap(idx_images(3, 4, 5)),
        );
        put(
            &dir,
            &format!("train-labels-idx1-ubyte{end}"),
            wrap(idx_labels(&[2, 0, 1])),
        );
        put(
            &dir,
            &format!("t10k-images-idx3-ubyte{end}"),
            wrap(idx_images(1, 4, 5)),
        );
        let set = open(dir.path(), Split::Train).unwrap();
        assert_eq!(
            (set.len(), set.channels, set.height, set.width),
            (3, 1, 4, 5)
        );
        assert_eq!(set.image(1)[0], 20);
        assert_eq!(set.labels.unwrap(), [2, 0, 1]);
        assert_eq!(set.class_names, ["0", "1", "2"]);
        let test = open(dir.path(), Split::Test).unwrap();
        assert_eq!((test.len(), test.labels), (1, None));
    }
}

#[test]
fn damaged_idx_files_say_what_is_wrong() {
    let dir = folder();
    assert!(message(dir.path().join("nowhere")).contains("no such file"));
    assert!(message(put(&dir, "a", [])).contains("empty"));
    assert!(
        message(put(&dir, "b", idx_labels(&[1; 20])))
            .contains("wrong magic number 0x00000801 (idx labels)")
    );
    assert!(message(put(&dir, "c", b"not an idx file at all")).contains("wrong magic"));
    assert!(message(put(&dir, "d", [0, 0, 8])).contains("truncated"));
    let whole = idx_images(2, 4, 4);
    assert!(message(put(&dir, "e", &whole[..40])).contains("announces 32 bytes of data, only 24"));
    assert!(message(put(&dir, "f", [&whole[..], &[0]].concat())).contains("more data"));
    let zipped = gz(&idx_images(200, 28, 28));
    assert!(message(put(&dir, "g", &zipped[..zipped.len() / 2])).contains("truncated"));
    let mut flipped = zipped.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x55;
    assert!(open(put(&dir, "h", flipped), Split::Train).is_err());
    assert!(message(put(&dir, "i", idx_images(0, 28, 28))).contains("no pixels"));
}

#[test]
fn a_huge_header_allocates_nothing() {
    let dir = folder();
    let mut bytes = 0x0803u32.to_be_bytes().to_vec();
    bytes.extend([0xff; 12]);
    assert!(message(put(&dir, "a", &bytes)).contains("once decoded"));
    let mut bytes = 0x0803u32.to_be_bytes().to_vec();
    for size in [60_000u32, 400, 400] {
        bytes.extend(size.to_be_bytes());
    }
    assert!(message(put(&dir, "b", &bytes)).contains("only 0 are there"));
}

#[test]
fn counts_of_images_and_labels_must_agree() {
    let dir = folder();
    put(&dir, "train-images-idx3-ubyte", idx_images(3, 2, 2));
    put(&dir, "train-labels-idx1-ubyte", idx_labels(&[0, 1]));
    let message = message(dir.path());
    assert!(
        message.contains("holds 3 images but") && message.contains("holds 2 labels"),
        "{message}"
    );
}

#[test]
fn a_folder_of_folders_has_classes() {
    let dir = folder();
    put(&dir, "cat/1.png", png(3, 2, false, 10));
    put(&dir, "cat/deep/2.png", png(3, 2, false, 20));
    put(&dir, "ant/x.PNG", png(3, 2, false, 30));
    put(&dir, "ant/notes.txt", "not an image");
    put(&dir, "cat/.hidden.png", "not an image");
    let set = open(dir.path(), Split::Train).unwrap();
    assert_eq!(set.class_names, ["ant", "cat"]);
    assert_eq!(set.labels.as_deref(), Some(&[0, 1, 1][..]));
    assert_eq!((set.channels, set.height, set.width), (1, 2, 3));
    assert_eq!(set.image(0), [30; 6]);
    assert!(
        open(dir.path(), Split::Test)
            .unwrap_err()
            .to_string()
            .contains("no separate test part")
    );
}

#[test]
fn one_coloured_image_makes_the_set_coloured() {
    let dir = folder();
    put(&dir, "1.png", png(2, 1, false, 10));
    put(&dir, "2.png", png(2, 1, true, 20));
    let set = open(dir.path(), Split::Train).unwrap();
    assert_eq!((set.channels, set.labels.clone()), (3, None));
    assert_eq!(set.image(0), [10; 6]);
    assert_eq!(set.image(1), [20, 20, 0, 0, 255, 255]);
}

#[test]
fn train_and_test_folders_are_told_apart() {
    let dir = folder();
    put(&dir, "train/a/1.png", png(2, 2, false, 1));
    put(&dir, "test/a/1.png", png(2, 2, false, 2));
    assert_eq!(open(dir.path(), Split::Train).unwrap().pixels, [1; 4]);
    assert_eq!(open(dir.path(), Split::Test).unwrap().pixels, [2; 4]);
}

#[test]
fn folders_with_nothing_or_broken_images_are_errors() {
    let dir = folder();
    assert!(message(dir.path()).contains("no images found"));
    put(&dir, "good.png", png(2, 2, false, 1));
    let mut bad = png(2, 2, false, 1);
    bad.truncate(40);
    put(&dir, "sub/bad.png", bad);
    let message = message(dir.path());
    assert!(
        message.contains("bad.png") && message.contains("cannot be decoded"),
        "{message}"
    );
}

#[test]
fn an_image_beside_class_folders_is_an_error() {
    let dir = folder();
    put(&dir, "stray.png", png(2, 2, false, 1));
    put(&dir, "a/1.png", png(2, 2, false, 1));
    assert!(message(dir.path()).contains("stray.png lies beside the class folders"));
}

#[test]
fn sizes_agree_or_are_made_to() {
    let dir = folder();
    put(&dir, "1.png", png(4, 2, false, 50));
    put(&dir, "2.png", png(8, 8, false, 90));
    let message = message(dir.path());
    assert!(
        message.contains("1.png is 2 x 4") && message.contains("2.png is 8 x 8"),
        "{message}"
    );
    let with = |sizes| open_with(dir.path(), Split::Train, sizes);
    let set = with(Sizes::Resize {
        height: 4,
        width: 4,
    })
    .unwrap();
    assert_eq!(set.pixels, [[50; 16], [90; 16]].concat());
    assert_eq!(
        with(Sizes::Only {
            height: 8,
            width: 8
        })
        .unwrap()
        .len(),
        1
    );
    assert!(
        with(Sizes::Only {
            height: 9,
            width: 9
        })
        .is_err()
    );
    assert!(
        with(Sizes::Resize {
            height: 0,
            width: 9
        })
        .is_err()
    );
}

fn tar_of(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn tar_archives_plain_gzipped_and_truncated() {
    let dir = folder();
    let bytes = tar_of(&[
        ("top/b/2.png", png(2, 2, false, 2)),
        ("top/a/1.png", png(2, 2, false, 1)),
        ("top/readme.txt", b"hello".to_vec()),
    ]);
    for (name, bytes) in [("x.tar", bytes.clone()), ("x.tar.gz", gz(&bytes))] {
        let set = open(put(&dir, name, bytes), Split::Train).unwrap();
        assert_eq!(set.class_names, ["a", "b"]);
        assert_eq!(set.pixels, [1, 1, 1, 1, 2, 2, 2, 2]);
    }
    // Of two archives in a folder neither is meant; one alone is.
    assert!(message(dir.path()).contains("no images"));
    let alone = folder();
    put(&alone, "x.tar.gz", gz(&bytes));
    put(&alone, "SOURCE.txt", b"from elsewhere");
    assert_eq!(open(alone.path(), Split::Train).unwrap().len(), 2);
    assert!(open(put(&dir, "y.tar", &bytes[..560]), Split::Train).is_err());
    let empty = tar_of(&[("readme.txt", b"hello".to_vec())]);
    assert!(message(put(&dir, "z.tar", empty)).contains("no images"));
    let bad = tar_of(&[("a/bad.png", b"nonsense".to_vec())]);
    assert!(message(put(&dir, "w.tar", bad)).contains("a/bad.png: cannot be decoded"));
}

fn counting(n: usize) -> ImageSet {
    ImageSet {
        channels: 1,
        height: 1,
        width: 2,
        pixels: (0..n).flat_map(|i| [i as u8, 0]).collect(),
        labels: Some((0..n).map(|i| i as u16).collect()),
        class_names: (0..n).map(|i| i.to_string()).collect(),
    }
}

#[test]
fn a_split_is_a_partition_that_depends_on_the_seed_only() {
    let set = counting(50);
    let (train, val) = set.split(0.2, 1).unwrap();
    assert_eq!((train.len(), val.len()), (40, 10));
    let mut all = [train.labels.clone().unwrap(), val.labels.clone().unwrap()].concat();
    all.sort_unstable();
    assert_eq!(all, set.labels.clone().unwrap());
    assert_eq!(set.split(0.2, 1).unwrap(), (train, val.clone()));
    assert_ne!(set.split(0.2, 2).unwrap().1, val);
    assert_eq!(val.image(0)[0] as u16, val.labels.unwrap()[0]);
    for fraction in [0.0, 1.0, -1.0, f64::NAN, 0.001] {
        assert!(set.split(fraction, 1).is_err());
    }
}

#[test]
fn a_batch_gathers_normalises_and_augments() {
    let set = counting(20);
    assert_eq!(
        set.batch(&[10, 5], &Normalization::MinMax, None),
        [10.0 / 255.0, 0.0, 5.0 / 255.0, 0.0]
    );
    let augment = Augment {
        noise: 0.1,
        ..Default::default()
    };
    let draw = |step| {
        let mut rng = rng(0, Stream::Augment, step);
        set.batch(
            &[1, 1, 2],
            &Normalization::Symmetric,
            Some((&augment, &mut rng)),
        )
    };
    assert_eq!(draw(0), draw(0));
    assert_ne!(draw(0), draw(1));
    assert_ne!(draw(0)[..2], draw(0)[2..4]);
}

#[test]
fn the_hash_sees_pixels_labels_and_names() {
    let set = counting(5);
    let mut others = [set.clone(), set.clone(), set.clone()];
    others[0].pixels[0] ^= 1;
    others[1].labels = None;
    others[2].class_names[0].push('x');
    assert_eq!(set.hash().len(), 64);
    assert!(others.iter().all(|other| other.hash() != set.hash()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn damaged_files_are_errors_not_panics(kind in 0usize..4, hits in proptest::collection::vec((0usize..5000, any::<u8>()), 1..6), keep in 0.3f64..1.0) {
        let tar = tar_of(&[("a/1.png", png(2, 2, true, 2)), ("b/2.png", png(2, 2, false, 1))]);
        let mut bytes = match kind {
            0 => idx_images(2, 4, 4),
            1 => gz(&idx_images(2, 4, 4)),
            2 => gz(&tar),
            _ => tar,
        };
        let n = bytes.len();
        for (at, value) in hits {
            bytes[at % n] = value;
        }
        bytes.truncate((n as f64 * keep) as usize + 1);
        let dir = folder();
        let path = put(&dir, "file", bytes);
        if let Ok(set) = open(&path, Split::Train) {
            prop_assert!(set.len() * set.channels * set.height * set.width == set.pixels.len());
        }
        let config = ImageStreamConfig { batch: 1, ..Default::default() };
        let _ = ImageStream::open(&path, config).and_then(|mut s| s.next_batch());
    }
}

#[test]
fn real_mnist() {
    let Some(path) = shared("mnist") else { return };
    let test = open(&path, Split::Test).unwrap();
    assert_eq!((test.len(), test.height, test.width), (10_000, 28, 28));
    assert_eq!(test.labels.as_ref().unwrap()[..5], [7, 2, 1, 0, 4]);
    let Normalization::Standardize { mean, std } = Normalization::standardize(&test) else {
        panic!()
    };
    assert!(
        (mean[0] - 0.1325).abs() < 1e-3 && (std[0] - 0.3105).abs() < 1e-3,
        "{mean:?} {std:?}"
    );
}

#[test]
fn real_tiles_out_of_a_tar_gz() {
    let Some(path) = shared("crawl-tiles/crawl-tiles-Nov-2015.tar.gz") else {
        return;
    };
    assert!(message(&path).contains("differ in size"));
    let set = open_with(
        &path,
        Split::Train,
        Sizes::Only {
            height: 32,
            width: 32,
        },
    )
    .unwrap();
    assert_eq!(
        (set.len(), set.channels, set.class_names.len()),
        (4249, 3, 8),
        "{:?}",
        set.class_names
    );
}

#[test]
fn grey_and_colour() {
    let set = |channels, pixels| ImageSet {
        channels,
        height: 1,
        width: 2,
        pixels,
        labels: None,
        class_names: vec![],
    };
    let colour = set(3, vec![10, 255, 10, 0, 10, 0]);
    assert_eq!(colour.in_channels(1).pixels, [10, 76]);
    assert_eq!(set(1, vec![1, 2]).in_channels(3).pixels, [1, 2, 1, 2, 1, 2]);
}
