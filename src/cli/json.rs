//! Data of a server as JSON: messages of the contract in protobuf's JSON mapping.
//!
//! Field names are those of the proto files, as in other tools that print the contract's terms. Numbers of 64 bits are
//! written as numbers and defaults are included, so that scripts can use them without knowing the contract; every
//! protobuf parser can read the text. Each message is one line, so that many need no more memory than one.

use std::sync::LazyLock;

use clap::Args;
use comfy_table::Table;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;
use shipreid::wire::{
    EmbedStreamResponse, Entry, FILE_DESCRIPTOR_SET, Gallery, MatchResponse, Model, TrainingJob, Vessel,
};

use super::output;

/// Whether scripts read what a command prints.
#[derive(Args)]
pub struct JsonFlag {
    /// Prints a JSON object per line: messages of the contract, with its field names.
    #[arg(long)]
    json: bool,
}

impl JsonFlag {
    pub fn is_given(&self) -> bool {
        self.json
    }

    /// Prints `messages`, as JSON or in a `table`.
    pub fn print<M: Printed>(&self, messages: &[M], table: impl FnOnce(&[M]) -> Table) {
        if self.json {
            messages.iter().for_each(|message| output::say(json(message)));
        } else {
            output::say(table(messages));
        }
    }
}

/// A message that is printed as one object.
pub trait Printed: Message {
    /// Its name within its package.
    const NAME: &str;
}

impl Printed for Entry {
    const NAME: &str = "Entry";
}

impl Printed for Gallery {
    const NAME: &str = "Gallery";
}

impl Printed for Vessel {
    const NAME: &str = "Vessel";
}

impl Printed for EmbedStreamResponse {
    const NAME: &str = "EmbedStreamResponse";
}

impl Printed for MatchResponse {
    const NAME: &str = "MatchResponse";
}

impl Printed for Model {
    const NAME: &str = "Model";
}

impl Printed for TrainingJob {
    const NAME: &str = "TrainingJob";
}

const PACKAGE: &str = "shipreid.v1";
const OPTIONS: SerializeOptions = SerializeOptions::new()
    .use_proto_field_name(true)
    .stringify_64_bit_integers(false)
    .skip_default_fields(false);

static CONTRACT: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("the build has compiled them"));

/// The JSON object of a message.
///
/// # Panics
/// Never: the contract has a message of this name, whose encoding is that of `message`.
pub fn json<M: Printed>(message: &M) -> Value {
    let name = format!("{PACKAGE}.{}", M::NAME);
    let described = CONTRACT.get_message_by_name(&name).expect("a message of the contract");
    let dynamic =
        DynamicMessage::decode(described, message.encode_to_vec().as_slice()).expect("its own bytes");
    dynamic
        .serialize_with_options(serde_json::value::Serializer, &OPTIONS)
        .expect("a message is a JSON object")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use prost_types::Timestamp;
    use serde_json::json;
    use shipreid::wire::{
        CheckpointChoice, DeliveredCheckpoint, JobState, Modality, Observation, TrainProgress,
    };

    use super::*;

    #[test]
    fn a_message_is_printed_with_the_names_of_the_contract() {
        let entry = Entry {
            entry_id: "a.tif".into(),
            modality: Modality::Sar.into(),
            observation: Some(Observation { latitude: Some(51.5), ..Observation::default() }),
            labels: HashMap::from([("port".into(), "Rotterdam".into())]),
            enrolled_at: Some(Timestamp { seconds: 1_772_323_200, nanos: 0 }),
            ..Entry::default()
        };
        let printed = super::json(&entry);
        assert_eq!(printed["entry_id"], "a.tif");
        assert_eq!(printed["vessel_id"], "", "a default is written");
        assert_eq!(printed["modality"], "MODALITY_SAR");
        assert_eq!(printed["observation"]["latitude"], 51.5);
        assert_eq!(printed["labels"], json!({ "port": "Rotterdam" }));
        assert_eq!(printed["enrolled_at"], "2026-03-01T00:00:00Z");
        assert_eq!(printed.get("embedding"), None, "what is not there is not made up");
    }

    #[test]
    fn every_message_that_is_printed_is_one_of_the_contract() {
        let job = TrainingJob {
            state: JobState::Running.into(),
            progress: Some(TrainProgress {
                step: 1 << 40,
                losses: HashMap::from([("total".into(), f64::NAN)]),
                ..TrainProgress::default()
            }),
            delivered_checkpoint: Some(DeliveredCheckpoint {
                choice: CheckpointChoice::Last.into(),
                ..DeliveredCheckpoint::default()
            }),
            ..TrainingJob::default()
        };
        let printed = super::json(&job);
        assert_eq!(printed["delivered_checkpoint"]["choice"], "CHECKPOINT_CHOICE_LAST");
        assert_eq!(printed["state"], "JOB_STATE_RUNNING");
        assert_eq!(printed["progress"]["step"], 1_u64 << 40, "a number, and no text");
        assert_eq!(printed["progress"]["losses"]["total"], "NaN");
        assert_eq!(super::json(&Gallery::default())["entries"], 0);
        assert_eq!(super::json(&Model::default())["active"], false);
        assert_eq!(super::json(&Vessel::default())["modalities"], json!([]));
        assert_eq!(super::json(&EmbedStreamResponse::default())["chip_id"], "");
        assert_eq!(super::json(&MatchResponse::default())["results"], json!([]));
    }
}
