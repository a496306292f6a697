//! What uploads promise, apart from their bytes on disk.

use std::fs::File;
use std::time::SystemTime;

use super::*;
use crate::reason::Reason;

const HOUR: Duration = Duration::from_secs(3600);
const RECORD: u64 = 16;

struct Trial {
    folder: tempfile::TempDir,
    uploads: Uploads,
}

fn limits(count_max: u64, bytes_max: u64) -> UploadLimits {
    UploadLimits { bounds: UploadBounds { count_max, bytes_max }, idle_max: HOUR }
}

fn trial(count_max: u64, bytes_max: u64) -> Trial {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let uploads = Uploads::open(folder.path(), limits(count_max, bytes_max)).expect("usable");
    Trial { folder, uploads }
}

impl Trial {
    fn create(&self, tenant: &str) -> Result<UploadId, Reason> {
        self.uploads.create(tenant).map(|upload| upload.id).map_err(|cause| cause.reason())
    }

    fn append(&self, tenant: &str, id: UploadId, offset: u64, chunk: &[u8]) -> Result<u64, Reason> {
        let appended = self.uploads.lease(tenant, id).and_then(|mut lease| lease.append(offset, chunk));
        appended.map(|upload| upload.size).map_err(|cause| cause.reason())
    }

    fn discard(&self, tenant: &str, id: UploadId) -> Result<(), Reason> {
        let discarded = self.uploads.lease(tenant, id).and_then(|lease| lease.discard(UploadEnd::Deleted));
        discarded.map_err(|cause| cause.reason())
    }

    fn size(&self, tenant: &str, id: UploadId) -> Result<u64, Reason> {
        self.uploads.get(tenant, id).map(|upload| upload.size).map_err(|cause| cause.reason())
    }

    /// As the next process finds it.
    fn restarted(self, limits: UploadLimits) -> Self {
        self.uploads.close();
        let uploads = Uploads::open(self.folder.path(), limits).expect("usable");
        Self { uploads, ..self }
    }

    /// The folders of all uploads of a tenant.
    fn on_disk(&self, tenant: &str) -> usize {
        fs::read_dir(self.folder.path().join(tenant_folder(tenant))).expect("readable").count()
    }
}

#[tokio::test]
async fn an_upload_goes_on_where_it_was_after_a_restart() {
    let trial = trial(4, 1 << 20);
    let id = trial.create("a").expect("room");
    assert_eq!(trial.append("a", id, 0, b"abcd"), Ok(4));
    let trial = trial.restarted(limits(4, 1 << 20));
    assert_eq!(trial.size("a", id), Ok(4));
    assert_eq!(trial.append("a", id, 0, b"abcd"), Ok(4), "its answer was lost");
    assert_eq!(trial.append("a", id, 4, b"ef"), Ok(6));
    assert_eq!(trial.append("a", id, 7, b"h"), Err(Reason::UploadOffsetWrong));
    assert_eq!(trial.append("a", id, 4, b"xy"), Err(Reason::UploadChunkDiffers));
    assert_eq!(trial.append("a", id, 6, b""), Err(Reason::UploadChunkEmpty));
    assert_eq!(trial.size("a", id), Ok(6));
}

#[tokio::test]
async fn an_upload_is_its_tenants_and_of_one_call_at_a_time() {
    let trial = trial(4, 1 << 20);
    let id = trial.create("a").expect("room");
    for refused in [trial.size("b", id), trial.append("b", id, 0, b"x"), trial.discard("b", id).map(|()| 0)] {
        assert_eq!(refused, Err(Reason::UploadNotFound));
    }
    let lease = trial.uploads.lease("a", id).expect("free");
    assert_eq!(trial.append("a", id, 0, b"x"), Err(Reason::UploadBusy));
    assert_eq!(trial.discard("a", id), Err(Reason::UploadBusy));
    assert_eq!(trial.size("a", id), Ok(0), "it can be looked at");
    drop(lease);
    assert_eq!(trial.discard("a", id), Ok(()));
    assert_eq!(trial.discard("a", id), Err(Reason::UploadNotFound));
    assert_eq!(trial.on_disk("a"), 0);
}

#[tokio::test]
async fn a_tenant_has_half_of_the_places_and_bytes_and_gives_them_back() {
    let trial = trial(3, 200);
    let id = trial.create("a").expect("room");
    let second = trial.create("a").expect("half of three, rounded up");
    assert_eq!(trial.create("a"), Err(Reason::TooManyUploads));
    let other = trial.create("b").expect("another tenant's");
    assert_eq!(trial.create("b"), Err(Reason::TooManyUploads), "there are three");

    let most = vec![1; 100 - RECORD as usize];
    assert_eq!(trial.append("a", id, 0, &[&most[..], b"x"].concat()), Err(Reason::UploadsTooLarge));
    assert_eq!(trial.size("a", id), Ok(0));
    assert_eq!(trial.append("a", id, 0, &most), Ok(84));
    assert_eq!(trial.append("a", second, 0, b"x"), Err(Reason::UploadsTooLarge));
    assert_eq!(trial.append("a", id, 0, &most), Ok(84), "a repetition needs no room");
    assert_eq!(trial.append("b", other, 0, &most), Ok(84));

    assert_eq!(trial.discard("a", id), Ok(()));
    assert_eq!(trial.append("a", second, 0, &most), Ok(84));
    trial.create("a").expect("its place is free");
}

#[tokio::test]
async fn lower_limits_keep_what_is_there_and_refuse_more() {
    let first = trial(4, 1000);
    let [id, other] = [first.create("a"), first.create("a")].map(|id| id.expect("room"));
    assert_eq!(first.append("a", id, 0, &[1; 300]), Ok(300));
    let trial = first.restarted(limits(1, 10));
    assert_eq!((trial.size("a", id), trial.size("a", other)), (Ok(300), Ok(0)));
    assert_eq!(trial.create("a"), Err(Reason::TooManyUploads));
    assert_eq!(trial.append("a", other, 0, b"x"), Err(Reason::UploadsTooLarge));
    assert_eq!(trial.discard("a", id), Ok(()));
    assert_eq!(trial.discard("a", other), Ok(()));
    let trial = trial.restarted(limits(1, 40));
    let only = trial.create("a").expect("one");
    assert_eq!(
        trial.append("a", only, 0, &[1; 5]),
        Err(Reason::UploadsTooLarge),
        "half of 40 less the record"
    );
    assert_eq!(trial.append("a", only, 0, &[1; 4]), Ok(4));
}

#[tokio::test(start_paused = true)]
async fn an_upload_expires_once_nothing_is_appended_and_gives_back_its_place() {
    let trial = trial(2, 1 << 20);
    let sweeping = tokio::spawn(trial.uploads.clone().keep_sweeping());
    let id = trial.create("a").expect("room");
    for offset in 0..3 {
        tokio::time::sleep(HOUR - Duration::from_secs(1)).await;
        assert_eq!(trial.append("a", id, offset, b"x"), Ok(offset + 1), "appending postpones it");
    }
    assert_eq!(trial.create("a"), Err(Reason::TooManyUploads));
    tokio::time::sleep(HOUR - Duration::from_secs(1)).await;
    assert_eq!(trial.size("a", id), Ok(3));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(trial.size("a", id), Err(Reason::UploadNotFound));
    assert_eq!(trial.append("a", id, 3, b"x"), Err(Reason::UploadNotFound));
    assert_eq!(trial.uploads.list("a", None, 9).uploads, []);
    while trial.on_disk("a") > 0 {
        tokio::time::sleep(SWEEP_PAUSE).await;
    }
    trial.create("a").expect("its place is free");
    sweeping.abort();
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_is_being_imported_does_not_go_away() {
    let trial = trial(2, 1 << 20);
    let id = trial.create("a").expect("room");
    assert_eq!(trial.append("a", id, 0, b"abcd"), Ok(4));
    let lease = trial.uploads.lease("a", id).expect("free");
    let mut contents = lease.contents(None).expect("readable");
    tokio::time::sleep(2 * HOUR).await;
    trial.uploads.sweep();
    assert_eq!(contents.read().expect("intact").as_deref(), Some(&b"abcd"[..]));
    drop(lease);
    trial.uploads.sweep();
    assert_eq!(trial.on_disk("a"), 0);
}

#[tokio::test(start_paused = true)]
async fn the_time_before_a_restart_counts() {
    let trial = trial(2, 1 << 20);
    let [old, older] = [trial.create("a"), trial.create("b")].map(|id| id.expect("room"));
    for (tenant, id, idle) in [("a", old, HOUR / 2), ("b", older, 2 * HOUR)] {
        let chunks = trial.folder.path().join(tenant_folder(tenant)).join(id.to_string()).join("chunks");
        let file = File::options().write(true).open(chunks).expect("there");
        file.set_modified(SystemTime::now() - idle).expect("settable");
    }
    let trial = trial.restarted(limits(2, 1 << 20));
    assert_eq!((trial.size("a", old), trial.size("b", older)), (Ok(0), Err(Reason::UploadNotFound)));
    tokio::time::sleep(HOUR / 2).await;
    assert_eq!(trial.size("a", old), Err(Reason::UploadNotFound));
}

#[tokio::test]
async fn uploads_are_listed_oldest_first_in_pages() {
    let trial = trial(20, 1 << 20);
    let mut expected: Vec<_> = (0..5).map(|_| trial.create("a").expect("room")).collect();
    trial.create("b").expect("room");
    expected.sort();
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = trial.uploads.list("a", after, 2);
        assert!(page.uploads.len() <= 2);
        listed.extend(page.uploads.iter().map(|upload| upload.id));
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(listed, expected);
}

#[tokio::test]
async fn an_upload_that_cannot_be_read_is_kept_and_the_others_are_served() {
    let trial = trial(4, 1 << 20);
    let [broken, whole] = [trial.create("a"), trial.create("a")].map(|id| id.expect("room"));
    let folder = trial.folder.path().join(tenant_folder("a"));
    fs::remove_file(folder.join(broken.to_string()).join("chunks")).expect("removable");
    fs::create_dir(folder.join("lost+found")).expect("writable");
    let trial = trial.restarted(limits(4, 1 << 20));
    assert_eq!((trial.size("a", broken), trial.size("a", whole)), (Err(Reason::UploadNotFound), Ok(0)));
    assert!(folder.join(broken.to_string()).exists());
    let second = Uploads::open(trial.folder.path(), limits(4, 1 << 20));
    assert!(matches!(second, Err(UploadError::Lock(_))), "one server at a time");
}
