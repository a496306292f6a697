//! What keeps several processes from training together, or ends them: each says one true reason.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use shipreid::wire::JobState;

use crate::ranks::{free_port, launched, said, together, undisturbed};
use crate::runs::{drawn_training_set, training};
use crate::training::{TrainingFolder, Watcher, start};

#[test]
fn processes_that_cannot_share_a_batch_are_refused() {
    let root = tempfile::tempdir().unwrap();
    drawn_training_set(root.path());
    let three =
        training(root.path(), "out").args(["--processes", "3"]).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(three.status.code(), Some(2));
    let reason = "2 identities or pairs a batch are not a multiple of 3 training processes";
    assert!(said(&three).contains(reason), "{}", said(&three));
    let lost = training(root.path(), "out").env("RANK", "1").stderr(Stdio::piped()).output().unwrap();
    assert_eq!(lost.status.code(), Some(2));
    assert!(said(&lost).contains("WORLD_SIZE is not set, though RANK is"), "{}", said(&lost));
}

/// Rank 0, and rank 1 by another command; what both say.
fn both(root: &Path, rank_1: Command) -> [Output; 2] {
    let port = free_port();
    let mut commands = [training(root, "out"), rank_1];
    let mut ranks =
        (0..2).zip(&mut commands).map(|(rank, command)| launched(command, rank, port).spawn().unwrap());
    let ranks = [ranks.next().unwrap(), ranks.next().unwrap()];
    ranks.map(|rank| rank.wait_with_output().unwrap())
}

#[test]
fn ranks_that_differ_say_which_one_and_in_what() {
    let root = tempfile::tempdir().unwrap();
    drawn_training_set(root.path());
    let mut other_config = training(root.path(), "out");
    other_config.args(["--set", "schedule.epochs=3"]);
    // Under the same name, rank 1 finds a folder in which one image is another one.
    let other = root.path().join("other");
    drawn_training_set(&other);
    let images = other.join("bounding_box_train");
    fs::copy(images.join("0001_0_RGB.tif"), images.join("0001_2_RGB.tif")).unwrap();
    let mut other_data = Command::new("unshare");
    let mount = "mount --bind \"$0\" \"$1\" && shift && exec \"$@\"";
    other_data.args(["--user", "--map-root-user", "--mount", "sh", "-c", mount]);
    other_data.args([&images, &root.path().join("bounding_box_train")]);
    let same = training(root.path(), "out");
    other_data.arg(same.get_program()).args(same.get_args());
    for (rank_1, what) in [(other_config, "configuration"), (other_data, "data set")] {
        for output in both(root.path(), rank_1) {
            assert_eq!(output.status.code(), Some(2), "{}", said(&output));
            let reason = format!("rank 1 has another {what} than rank 0");
            assert!(said(&output).contains(&reason), "{}", said(&output));
        }
    }
    assert!(!root.path().join("out/model").exists());
}

#[test]
fn a_port_that_another_run_uses_is_named() {
    let root = tempfile::tempdir().unwrap();
    drawn_training_set(root.path());
    let used = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = used.local_addr().unwrap().port();
    let refused = launched(&mut training(root.path(), "out"), 0, port).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let reason = format!("rank 0 cannot listen on port {port} of 127.0.0.1");
    assert!(said(&refused).contains(&reason) && said(&refused).contains("in use"), "{}", said(&refused));
}

/// Bytes that the files of a folder take on a disk in pages.
fn taken(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().metadata().unwrap().len());
    files.map(|length| length.next_multiple_of(4096)).sum()
}

/// Runs the command on a disk with room for two checkpoints, then, with more room, again. Prints what it says, its exit
/// codes and the checkpoints between; leaves the events.
const ON_A_FULL_DISK: &str = r#"
disk=$0 size=$1 ballast=$2 events=$3; shift 3
mount -t tmpfs -o "size=$size" tmpfs "$disk"
head -c "$ballast" /dev/zero >"$disk/ballast"
"$@"; echo "ended with $?"
ls "$disk/out/checkpoints"
rm "$disk/ballast"
"$@"; echo "ended with $?"
cp "$disk/out/events.jsonl" "$events"
"#;

#[test]
fn a_full_disk_of_rank_0_ends_the_run_and_leaves_the_checkpoint_before() {
    let root = tempfile::tempdir().unwrap();
    drawn_training_set(root.path());
    let (expected, _) = undisturbed(root.path());
    let checkpoint = taken(&root.path().join("whole/checkpoints/checkpoint-0000000016"));
    let (disk, left) = (root.path().join("disk"), root.path().join("left.jsonl"));
    fs::create_dir(&disk).unwrap();
    // While a third is written, the two before it are kept.
    let ballast = 4 * checkpoint + (8 << 20);
    let size = ballast + 5 * checkpoint / 2 + (256 << 10);
    let run = together(root.path(), "disk/out");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", ON_A_FULL_DISK]).arg(&disk);
    command.args([size.to_string(), ballast.to_string()]).arg(&left);
    command.arg(run.get_program()).args(run.get_args()).env_remove("OMP_NUM_THREADS");
    let output = command.output().unwrap();
    let said = said(&output);
    assert!(said.contains("rank 0: ") && said.contains("No space left on device"), "{said}");
    assert!(said.contains("ended with 1\ncheckpoint-0000000002\ncheckpoint-0000000004\n"), "{said}");
    assert!(said.contains("resuming after step 4") && said.contains("ended with 0"), "{said}");
    assert_eq!(fs::read_to_string(left).unwrap(), expected);
}

#[tokio::test]
async fn a_job_ends_with_the_reason_of_the_process_that_failed() {
    let place = TrainingFolder::new();
    let (server, client) = place.serve(&["training.processes=2"]).await;
    let folder = place.folder().join("ships/synthetic_hoss/bounding_box_train");
    let images = fs::read_dir(&folder).unwrap().map(|image| image.unwrap().path());
    let mut ships: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for image in images {
        let name = image.file_name().unwrap().to_str().unwrap();
        ships.entry(name.split('_').next().unwrap().to_owned()).or_default().push(image);
    }
    let mut failed_in_rank_1 = false;
    // In the first epoch each ship is seen by either rank.
    for images in ships.values() {
        let whole: Vec<Vec<u8>> = images.iter().map(|image| fs::read(image).unwrap()).collect();
        images.iter().for_each(|image| fs::write(image, "no image").unwrap());
        let job = start(&client, place.config(0)).await;
        let mut watcher = Watcher::default();
        watcher.watch(&client, &job, |_| false).await;
        let job = watcher.last_job();
        assert_eq!((job.state(), job.failure_reason.as_str()), (JobState::Failed, "DATA_MISSING"), "{job:?}");
        assert_eq!(watcher.states().len(), 3, "it is not tried again");
        failed_in_rank_1 = job.failure_message.starts_with("rank 1: ");
        if failed_in_rank_1 {
            break;
        }
        images.iter().zip(whole).for_each(|(image, bytes)| fs::write(image, bytes).unwrap());
    }
    assert!(failed_in_rank_1, "no ship was seen by rank 1");
    server.terminate();
}
