//! The reasons of calls that fail.

use std::time::Duration;

use super::{Code, Retry, named};

/// Room comes back within moments.
const SHORT: Duration = Duration::from_millis(250);
/// Something has to end, or another server to take over.
const LONG: Duration = Duration::from_secs(2);

/// What is known of each reason.
struct Facts {
    code: Code,
    retry: Retry,
}

macro_rules! facts {
    ($code:ident, Short) => {
        Facts { code: Code::$code, retry: Retry::Wait(SHORT) }
    };
    ($code:ident, Long) => {
        Facts { code: Code::$code, retry: Retry::Wait(LONG) }
    };
    ($code:ident, $retry:ident) => {
        Facts { code: Code::$code, retry: Retry::$retry }
    };
}

impl Reason {
    /// The status code of a call that fails as a whole with it.
    pub const fn code(self) -> Code {
        self.facts().code
    }

    pub const fn retry(self) -> Retry {
        self.facts().retry
    }
}

named! {
    /// Why a call, or one item of it, fails: `google.rpc.ErrorInfo.reason` and `ItemError.reason`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Reason {
        "The request":
            MessageMalformed "MESSAGE_MALFORMED" (InvalidArgument, Correct)
                "The message does not decode as the method's request.";
            MessageTooLarge "MESSAGE_TOO_LARGE" (ResourceExhausted, Correct)
                "The message is larger than `limits.message_bytes_max`.";
            TimeoutMalformed "TIMEOUT_MALFORMED" (InvalidArgument, Correct)
                "The header `grpc-timeout` cannot be read.";
            PageSizeInvalid "PAGE_SIZE_INVALID" (InvalidArgument, Correct)
                "`page_size` is above the limit.";
            PageTokenInvalid "PAGE_TOKEN_INVALID" (InvalidArgument, Correct)
                "`page_token` is not from an earlier answer of this list.";
            PriorityUnknown "PRIORITY_UNKNOWN" (InvalidArgument, Correct)
                "The number is no value of `Priority`.";
            TextEmpty "TEXT_EMPTY" (InvalidArgument, Correct)
                "A text that has to be set is empty.";
            TextTooLong "TEXT_TOO_LONG" (InvalidArgument, Correct)
                "A text is longer than its limit.";
            TextControl "TEXT_CONTROL" (InvalidArgument, Correct)
                "A text contains control characters.";
            NumberOutOfBounds "NUMBER_OUT_OF_BOUNDS" (InvalidArgument, Correct)
                "A number lies outside the range that its field allows.";
            TimeInvalid "TIME_INVALID" (InvalidArgument, Correct)
                "A timestamp lies outside the years 1678 to 2262, or its nanoseconds are out of range.";
            TimeRangeInverted "TIME_RANGE_INVERTED" (InvalidArgument, Correct)
                "A time range ends before it begins.";
            PositionIncomplete "POSITION_INCOMPLETE" (InvalidArgument, Correct)
                "A position lacks its latitude or longitude, or an uncertainty its position.";
            LabelsInvalid "LABELS_INVALID" (InvalidArgument, Correct)
                "There are too many labels, or a key or value is not allowed.";
        "Chips and embeddings":
            NoChips "NO_CHIPS" (InvalidArgument, Correct)
                "The request has no chips.";
            TooManyChips "TOO_MANY_CHIPS" (InvalidArgument, Correct)
                "The request has more chips than `limits.chips_per_request_max`.";
            ModalityUnknown "MODALITY_UNKNOWN" (InvalidArgument, Correct)
                "The modality is not set, or the number is no value of `Modality`.";
            ModalityContradicts "MODALITY_CONTRADICTS" (InvalidArgument, Correct)
                "The chip and its entry name different modalities.";
            ImageEmpty "IMAGE_EMPTY" (InvalidArgument, Correct)
                "The image has no bytes.";
            ImageTooLarge "IMAGE_TOO_LARGE" (InvalidArgument, Correct)
                "The image has more bytes than `chips.bytes_max`.";
            ImageTooManyPixels "IMAGE_TOO_MANY_PIXELS" (InvalidArgument, Correct)
                "The image has more pixels than `chips.pixels_max`.";
            ImageWithoutPixels "IMAGE_WITHOUT_PIXELS" (InvalidArgument, Correct)
                "The image has a width or height of 0.";
            ImageFormatUnknown "IMAGE_FORMAT_UNKNOWN" (InvalidArgument, Correct)
                "The bytes are not an image in a supported format.";
            ImageTruncated "IMAGE_TRUNCATED" (InvalidArgument, Correct)
                "The image ends too early.";
            ImageCorrupt "IMAGE_CORRUPT" (InvalidArgument, Correct)
                "The image contradicts its own format.";
            ImageUnsupported "IMAGE_UNSUPPORTED" (InvalidArgument, Correct)
                "Images of this kind are not supported; the message names the kind, and a command that converts it.";
            SarChannels "SAR_CHANNELS" (InvalidArgument, Correct)
                "A SAR TIFF has more than one channel.";
            OrientedBoxInvalid "ORIENTED_BOX_INVALID" (InvalidArgument, Correct)
                "The oriented box has a value that is not finite, or is smaller than a pixel, too large, or outside the image.";
            PixelSizeInvalid "PIXEL_SIZE_INVALID" (InvalidArgument, Correct)
                "A pixel size is not a positive number of metres within bounds.";
            PixelsMisshapen "PIXELS_MISSHAPEN" (InvalidArgument, Correct)
                "Prepared pixels do not have the model's input shape.";
            PixelsNotFinite "PIXELS_NOT_FINITE" (InvalidArgument, Correct)
                "Prepared pixels contain NaN or infinity.";
            SizeTokenNotFinite "SIZE_TOKEN_NOT_FINITE" (InvalidArgument, Correct)
                "The size token contains NaN or infinity.";
            EmbeddingEmpty "EMBEDDING_EMPTY" (InvalidArgument, Correct)
                "The embedding has no values.";
            EmbeddingNotFinite "EMBEDDING_NOT_FINITE" (InvalidArgument, Correct)
                "The embedding contains NaN or infinity.";
            EmbeddingZero "EMBEDDING_ZERO" (InvalidArgument, Correct)
                "The embedding is all zeros and has no direction.";
            EmbeddingNotUnit "EMBEDDING_NOT_UNIT" (InvalidArgument, Correct)
                "The embedding is not of unit length.";
            EmbeddingCancelled "EMBEDDING_CANCELLED" (InvalidArgument, Correct)
                "The embeddings cancel each other: their mean has no direction.";
            DecodeFailed "DECODE_FAILED" (Internal, Operator)
                "Decoding the image failed unexpectedly.";
        "Match":
            NoQueries "NO_QUERIES" (InvalidArgument, Correct)
                "The request has no queries.";
            TooManyQueries "TOO_MANY_QUERIES" (InvalidArgument, Correct)
                "The request has more queries than `matching.queries_max`.";
            NoSubject "NO_SUBJECT" (InvalidArgument, Correct)
                "A query names neither a tracklet nor an embedding nor an entry.";
            TrackletCancels "TRACKLET_CANCELS" (InvalidArgument, Correct)
                "The tracklet's embeddings cancel each other: their mean has no direction.";
            TopKInvalid "TOP_K_INVALID" (InvalidArgument, Correct)
                "`top_k` is above the limit.";
            GroupByUnknown "GROUP_BY_UNKNOWN" (InvalidArgument, Correct)
                "The number is no value of `GroupBy`.";
            RankingUnknown "RANKING_UNKNOWN" (InvalidArgument, Correct)
                "The number is no value of `Ranking`.";
            RerankDepthInvalid "RERANK_DEPTH_INVALID" (InvalidArgument, Correct)
                "`rerank_depth` is above the limit.";
            RerankOfFused "RERANK_OF_FUSED" (InvalidArgument, Correct)
                "Only rankings by cosine can be re-ranked.";
            FilterTooLong "FILTER_TOO_LONG" (InvalidArgument, Correct)
                "A filter lists more values than its limit.";
            FilterContradicts "FILTER_CONTRADICTS" (InvalidArgument, Correct)
                "A filter wants and excludes the same.";
            FilterEmpty "FILTER_EMPTY" (InvalidArgument, Correct)
                "A filter that selects what to delete must name something, and not only what to leave out.";
            Uncalibrated "UNCALIBRATED" (FailedPrecondition, Resolve)
                "FUSED and `min_probability` need a calibrator for the gallery's model: kept with it, or in `matching.calibrators`.";
            RankingUnavailable "RANKING_UNAVAILABLE" (FailedPrecondition, Resolve)
                "A gallery whose model is an ensemble is ranked by RECIPROCAL_RANK alone, and no other gallery is: leave `ranking` unset, and `rerank_depth`.";
            TopKBeyondDepth "TOP_K_BEYOND_DEPTH" (FailedPrecondition, Resolve)
                "`top_k` is above the number of ranks that the gallery's ensemble fuses: ask for fewer, or make an ensemble with a larger `--depth`.";
            ModelMismatch "MODEL_MISMATCH" (FailedPrecondition, Resolve)
                "The embedding is of another model than the gallery.";
            DimensionMismatch "DIMENSION_MISMATCH" (FailedPrecondition, Resolve)
                "The embedding has another dimension than the gallery.";
            EntryNotFound "ENTRY_NOT_FOUND" (NotFound, Resolve)
                "The gallery has no such entry.";
        "Galleries":
            NoDataDir "NO_DATA_DIR" (FailedPrecondition, Resolve)
                "The server keeps no galleries, models and jobs: `store.data_dir` is not set.";
            RoleNotServed "ROLE_NOT_SERVED" (FailedPrecondition, Resolve)
                "`server.roles` leaves this method to other servers: send it to one of them.";
            GalleryNotHeld "GALLERY_NOT_HELD" (FailedPrecondition, Resolve)
                "`matching.galleries` leaves this gallery to other servers: send the call to one of them.";
            GalleryTooLarge "GALLERY_TOO_LARGE" (FailedPrecondition, Resolve)
                "This server has no memory left for a copy of the gallery (`store.resident_bytes_max`): send the call to a server that has, or give it more.";
            GalleryNameInvalid "GALLERY_NAME_INVALID" (InvalidArgument, Correct)
                "The gallery name is empty, too long or has characters that are not allowed.";
            GalleryNotFound "GALLERY_NOT_FOUND" (NotFound, Resolve)
                "There is no such gallery.";
            GalleryExists "GALLERY_EXISTS" (AlreadyExists, Resolve)
                "A gallery of this name exists.";
            GalleryChanged "GALLERY_CHANGED" (InvalidArgument, Correct)
                "A call enrols into one gallery, and this item names another.";
            GalleryReadOnly "GALLERY_READ_ONLY" (FailedPrecondition, Resolve)
                "Writing failed, so the gallery answers reads only; the message says why.";
            GalleryClosed "GALLERY_CLOSED" (Unavailable, Long)
                "The gallery is being reopened, or the server is shutting down.";
            DatabaseUnreachable "DATABASE_UNREACHABLE" (Unavailable, Long)
                "The database that servers share (`store.url`) cannot be reached. A write may have happened all the same; asking again is safe.";
            GalleryLoading "GALLERY_LOADING" (Unavailable, Long)
                "This server is loading its copy of a shared gallery.";
            GalleryStale "GALLERY_STALE" (Unavailable, Long)
                "A call with `read` = READ_LOCAL came to a server whose copy of the gallery is older than `store.local_read_seconds_max`.";
            CommitUnknown "COMMIT_UNKNOWN" (FailedPrecondition, Resolve)
                "`min_commit` is above the gallery's last commit: the number is another gallery's, or the gallery was made again or its database restored since.";
            ReadUnknown "READ_UNKNOWN" (InvalidArgument, Correct)
                "The number is no value of `Read`.";
            GalleryUnreadable "GALLERY_UNREADABLE" (DataLoss, Operator)
                "What the gallery stored cannot be read.";
            GalleryRefused "GALLERY_REFUSED" (FailedPrecondition, Resolve)
                "The gallery could not be opened: a newer release wrote it, or its files cannot be read.";
            GalleryDamaged "GALLERY_REFUSED" (DataLoss, Operator)
                "The gallery could not be opened: its files are damaged.";
            GalleryFailed "GALLERY_FAILED" (Internal, Operator)
                "Reading the gallery failed unexpectedly.";
            GalleryWithoutChips "GALLERY_WITHOUT_CHIPS" (FailedPrecondition, Resolve)
                "The gallery keeps no chips, so no job can learn from it, and there are no previews.";
            EntryWithoutChip "ENTRY_WITHOUT_CHIP" (FailedPrecondition, Resolve)
                "The entry was enrolled without a chip; enrol it again with one (`overwrite`, `ReadyEmbedding.chip`).";
            ChipUnreadable "CHIP_UNREADABLE" (FailedPrecondition, Resolve)
                "The entry's kept chip cannot be decoded, or is larger than this server allows now; the message says why.";
            ModelNotResident "MODEL_NOT_RESIDENT" (FailedPrecondition, Resolve)
                "The gallery is of a model that is not loaded; the message names the ways out.";
            NoSource "NO_SOURCE" (InvalidArgument, Correct)
                "An item has neither a chip nor an embedding.";
            NoSelection "NO_SELECTION" (InvalidArgument, Correct)
                "Neither ids nor a filter say what to delete.";
            ObservationTwice "OBSERVATION_TWICE" (InvalidArgument, Correct)
                "The observation is given with the chip and with the entry.";
            UpdateMaskEmpty "UPDATE_MASK_EMPTY" (InvalidArgument, Correct)
                "`update_mask` names no field.";
            UpdateMaskUnknown "UPDATE_MASK_UNKNOWN" (InvalidArgument, Correct)
                "`update_mask` names a field that cannot be updated.";
            NoEntries "NO_ENTRIES" (InvalidArgument, Correct)
                "The request has no entries.";
            TooManyEntries "TOO_MANY_ENTRIES" (InvalidArgument, Correct)
                "The request names more entries than its limit.";
            EntryExists "ENTRY_EXISTS" (AlreadyExists, Resolve)
                "The entry exists with other content.";
            EntriesQuota "ENTRIES_QUOTA" (ResourceExhausted, Resolve)
                "The gallery has as many entries as `store.entries_max` allows.";
            BytesQuota "BYTES_QUOTA" (ResourceExhausted, Resolve)
                "The tenant's galleries hold as many bytes as `store.bytes_max` allows.";
            GalleriesQuota "GALLERIES_QUOTA" (ResourceExhausted, Resolve)
                "The tenant has as many galleries as `store.galleries_max` allows.";
            ExportForeign "EXPORT_FOREIGN" (InvalidArgument, Correct)
                "The data is no export of a gallery.";
            ExportNewer "EXPORT_NEWER" (InvalidArgument, Correct)
                "The export was written by a newer release.";
            ExportTruncated "EXPORT_TRUNCATED" (InvalidArgument, Correct)
                "The export ends too early.";
            ExportDamaged "EXPORT_DAMAGED" (InvalidArgument, Correct)
                "The export is damaged.";
            ExportUnacceptable "EXPORT_UNACCEPTABLE" (InvalidArgument, Correct)
                "The export contains an entry that Enroll would refuse.";
            ExportTooSlow "EXPORT_TOO_SLOW" (Aborted, Long)
                "The export was read too slowly and ended, to release the snapshot it held.";
            ImportingTooMuch "IMPORTING_TOO_MUCH" (ResourceExhausted, Long)
                "Imports hold as much memory as they may for records that are still incomplete.";
            DataDirectoryUnusable "DATA_DIRECTORY_UNUSABLE" (Internal, Operator)
                "The data directory cannot be read or written.";
            DiskFull "DISK_FULL" (ResourceExhausted, Resolve)
                "The disk is full.";
        "Models":
            ModelMalformed "MODEL_MALFORMED" (InvalidArgument, Correct)
                "The model is not given as a digest of 64 hexadecimal digits.";
            ModelNotFound "MODEL_NOT_FOUND" (NotFound, Resolve)
                "There is no such model, or it is no longer loaded.";
            ModelUnreadable "MODEL_UNREADABLE" (InvalidArgument, Correct)
                "The data is no model that can be read; the message says why.";
            ModelNotOfSource "MODEL_NOT_OF_SOURCE" (FailedPrecondition, Resolve)
                "A model in int8 is not what the model gives that it says it was made from.";
            CalibratorMismatch "CALIBRATOR_MISMATCH" (FailedPrecondition, Resolve)
                "A model comes with a calibrator that was fitted on the embeddings of another model.";
            ModelDamaged "MODEL_DAMAGED" (DataLoss, Operator)
                "The model's files are damaged.";
            ModelActive "MODEL_ACTIVE" (FailedPrecondition, Resolve)
                "The active model cannot be deleted.";
            ModelInUse "MODEL_IN_USE" (FailedPrecondition, Resolve)
                "A gallery or job still uses the model.";
            ModelNeeded "MODEL_NEEDED" (FailedPrecondition, Resolve)
                "A gallery needs the model that the activation would unload.";
            ModelNotRunnable "MODEL_NOT_RUNNABLE" (FailedPrecondition, Operator)
                "The model cannot run on this server's device.";
            ModelTooLarge "MODEL_TOO_LARGE" (ResourceExhausted, Resolve)
                "The model is larger than `models.resident_bytes_max`.";
            TooManyResidentModels "TOO_MANY_RESIDENT_MODELS" (FailedPrecondition, Resolve)
                "The loaded models leave no room within `models.resident_bytes_max`.";
            TooManyModels "TOO_MANY_MODELS" (ResourceExhausted, Resolve)
                "The server keeps as many models as it may.";
            ModelsTooLarge "MODELS_TOO_LARGE" (ResourceExhausted, Resolve)
                "The model is larger than what the server may still keep.";
            TooManyImports "TOO_MANY_IMPORTS" (ResourceExhausted, Long)
                "As many imports of models are running as may.";
            ModelStoreFailed "MODEL_STORE_FAILED" (Internal, Operator)
                "The models on disk cannot be read or written.";
            ActivationInProgress "ACTIVATION_IN_PROGRESS" (Aborted, Long)
                "Another activation is running.";
            ActivationFailed "ACTIVATION_FAILED" (Internal, Operator)
                "Activating the model failed unexpectedly.";
            FeaturePointUnknown "FEATURE_POINT_UNKNOWN" (InvalidArgument, Correct)
                "The number is no value of `FeaturePoint`.";
            SarStretchUnknown "SAR_STRETCH_UNKNOWN" (InvalidArgument, Correct)
                "The number is no value of `SarStretch`.";
            ImageSizeIncomplete "IMAGE_SIZE_INCOMPLETE" (InvalidArgument, Correct)
                "The hints name a height without a width, or the reverse.";
        "Uploads":
            UploadIdMalformed "UPLOAD_ID_MALFORMED" (InvalidArgument, Correct)
                "`upload_id` is not 32 hexadecimal digits.";
            UploadNotFound "UPLOAD_NOT_FOUND" (NotFound, Resolve)
                "There is no such upload: it was never created, was imported or deleted, or expired.";
            UploadBusy "UPLOAD_BUSY" (Aborted, Short)
                "Another call is appending to the upload, or importing it.";
            UploadOffsetWrong "UPLOAD_OFFSET_WRONG" (OutOfRange, Correct)
                "The chunk begins beyond the end of the upload; `size_bytes` is where the next one begins.";
            UploadChunkDiffers "UPLOAD_CHUNK_DIFFERS" (AlreadyExists, Resolve)
                "The upload holds other bytes where the chunk begins; `size_bytes` is where the next one begins.";
            UploadChunkEmpty "UPLOAD_CHUNK_EMPTY" (InvalidArgument, Correct)
                "The chunk has no bytes.";
            TooManyUploads "TOO_MANY_UPLOADS" (ResourceExhausted, Resolve)
                "As many uploads exist as `uploads.count_max` allows; `scope` says whether the tenant's or all.";
            UploadsTooLarge "UPLOADS_TOO_LARGE" (ResourceExhausted, Resolve)
                "Uploads hold as many bytes as `uploads.bytes_max` allows; `scope` says whether the tenant's or all.";
            UploadDamaged "UPLOAD_DAMAGED" (DataLoss, Operator)
                "What the upload stored can no longer be read: delete it, and send it again.";
            Sha256Malformed "SHA256_MALFORMED" (InvalidArgument, Correct)
                "`sha256` is not 64 hexadecimal digits.";
            Sha256Mismatch "SHA256_MISMATCH" (InvalidArgument, Correct)
                "The upload has another SHA-256: it is incomplete, or was changed on its way.";
        "Training jobs":
            ConfigMalformed "CONFIG_MALFORMED" (InvalidArgument, Correct)
                "`config_toml` is not valid TOML.";
            ConfigInvalid "CONFIG_INVALID" (InvalidArgument, Correct)
                "The configuration cannot be run; `BadRequest` lists every field at fault.";
            JobIdMalformed "JOB_ID_MALFORMED" (InvalidArgument, Correct)
                "`job_id` is no id of a job.";
            JobNotFound "JOB_NOT_FOUND" (NotFound, Resolve)
                "There is no such job.";
            JobFinished "JOB_FINISHED" (FailedPrecondition, Resolve)
                "The job has finished.";
            JobFailed "JOB_FAILED" (FailedPrecondition, Resolve)
                "The job has failed; it can be resumed.";
            JobCancelled "JOB_CANCELLED" (FailedPrecondition, Resolve)
                "The job was cancelled; it can be resumed.";
            JobCancelling "JOB_CANCELLING" (FailedPrecondition, Resolve)
                "The job is being cancelled.";
            JobActive "JOB_ACTIVE" (FailedPrecondition, Resolve)
                "The job is waiting or running.";
            JobDamaged "JOB_DAMAGED" (DataLoss, Operator)
                "The job's record is damaged; other jobs are not affected.";
            JobsFull "JOBS_FULL" (ResourceExhausted, Resolve)
                "The server keeps as many jobs as `training.jobs_max` allows.";
            RequestIdTaken "REQUEST_ID_TAKEN" (AlreadyExists, Resolve)
                "`request_id` belongs to a job with another request.";
            StateUnknown "STATE_UNKNOWN" (InvalidArgument, Correct)
                "The number is no value of `TrainingState`.";
            EventNotRetained "EVENT_NOT_RETAINED" (OutOfRange, Correct)
                "The event to watch from is no longer kept; `oldest_event` is the first that is.";
            EventInFuture "EVENT_IN_FUTURE" (OutOfRange, Correct)
                "The event to watch from does not exist yet; `next_event` is the next one.";
            JobStoreUnavailable "JOB_STORE_UNAVAILABLE" (Unavailable, Long)
                "The store of the jobs cannot be read or written at the moment.";
            JobStoreDamaged "JOB_STORE_DAMAGED" (DataLoss, Operator)
                "The store of the jobs is damaged.";
            JobStoreNewer "JOB_STORE_NEWER" (FailedPrecondition, Operator)
                "A newer release wrote the store of the jobs.";
        "Load, time and shutdown":
            TooManyCalls "TOO_MANY_CALLS" (ResourceExhausted, Short)
                "As many calls are in flight as the server, the tenant or the connection may have; `scope` says which.";
            TooManyLooks "TOO_MANY_LOOKS" (ResourceExhausted, Short)
                "As many streams of reflection and health are open as may be.";
            ReceivingTooMuch "RECEIVING_TOO_MUCH" (ResourceExhausted, Short)
                "Messages that are still arriving take as much memory as they may.";
            RateLimited "RATE_LIMITED" (ResourceExhausted, Short)
                "The tenant sends more calls per second than its key allows.";
            QueueFull "QUEUE_FULL" (ResourceExhausted, Short)
                "As many chips are waiting as `encoder.queue_items_max` allows.";
            QueueBytesFull "QUEUE_BYTES_FULL" (ResourceExhausted, Short)
                "Waiting chips take as many bytes as `encoder.queue_bytes_max` allows.";
            QueueTooLong "QUEUE_TOO_LONG" (ResourceExhausted, Short)
                "The call would still be waiting at its deadline.";
            DeadlineExceeded "DEADLINE_EXCEEDED" (DeadlineExceeded, MoreTime)
                "The call's deadline has passed.";
            MessageTooSlow "MESSAGE_TOO_SLOW" (DeadlineExceeded, Short)
                "A message took longer to arrive than `limits.message_seconds_max`.";
            StreamIdle "STREAM_IDLE" (Unavailable, Short)
                "The stream was idle for longer than `limits.stream_idle_seconds_max`.";
            StreamDisplaced "STREAM_DISPLACED" (Unavailable, Short)
                "The server was full, and an idle stream gave its place to another call.";
            Draining "DRAINING" (Unavailable, Long)
                "The server is shutting down.";
            CallerLeft "CALLER_LEFT" (Aborted, Correct)
                "The caller left before its message was complete.";
            Cancelled "CANCELLED" (Cancelled, Correct)
                "The caller cancelled the call.";
        "The device":
            ForwardFailed "FORWARD_FAILED" (Internal, Operator)
                "The forward pass failed.";
            DeviceOutOfMemory "DEVICE_OUT_OF_MEMORY" (ResourceExhausted, Short)
                "The device has too little memory for the batch.";
            DeviceLost "DEVICE_LOST" (Unavailable, Long)
                "The device is lost; the server has to be restarted.";
        "Keys":
            KeyMissing "KEY_MISSING" (Unauthenticated, Resolve)
                "The call has no key.";
            KeyInvalid "KEY_INVALID" (Unauthenticated, Resolve)
                "The key is not known here.";
            KeyExpired "KEY_EXPIRED" (Unauthenticated, Resolve)
                "The key has expired.";
            KeysRejected "KEYS_REJECTED" (ResourceExhausted, Short)
                "Too many keys were rejected over this connection.";
            RoleMissing "ROLE_MISSING" (PermissionDenied, Resolve)
                "The key lacks the role that the method needs; `role` lists those that have it.";
    }
}
