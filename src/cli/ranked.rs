//! `shipreid match`: finds the ships of a gallery that image files show.

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, ValueEnum};
use comfy_table::{Table, presets};
use shipreid::wire::match_query::Subject;
use shipreid::wire::{
    Candidate, Chip, EntryFilter, GroupBy, MatchQuery, MatchRequest, MatchResponse, MatchResult, Ranking,
    Tracklet,
};

use super::chips::ChipFlags;
use super::filter::FilterFlags;
use super::gallery_list::{labels, modality, position, time};
use super::json::json;
use super::known::known_of;
use super::number::between;
use super::{ServerFlag, output};

/// Queries in one call.
const BATCH: usize = 16;
/// Columns of a ranking; the last ones describe the best entry.
const COLUMNS: [&str; 12] = [
    "",
    "vessel",
    "best entry",
    "entries",
    "similarity",
    "probability",
    "knots",
    "evidence",
    "modality",
    "observed at",
    "position",
    "labels",
];
/// Number of columns that every ranking has.
const ALWAYS_SHOWN: usize = 5;

#[derive(Args)]
#[command(after_help = "\
Examples:
  shipreid match 0003_s01c1_SAR.tif --gallery harbour
  shipreid match 0003_s01c1_SAR.tif --gallery harbour --among optical --from 2026-03-01T00:00:00Z --label port=west
  shipreid match pass/*.tif --gallery harbour --tracklet --manifest pass.jsonl --max-speed 40")]
pub struct Match {
    #[command(flatten)]
    chips: ChipFlags,
    /// Name of the gallery.
    #[arg(long, value_name = "NAME")]
    gallery: String,
    /// Candidates for each query. Default: 10, or as many as the server and the gallery's ensemble allow.
    #[arg(long)]
    k: Option<u32>,
    /// All files show the same ship and form one query.
    #[arg(long)]
    tracklet: bool,
    /// Ranks entries instead of vessels.
    #[arg(long)]
    by_entry: bool,
    /// What candidates are ranked by: similarity, or all evidence, which needs a calibrator on the server; default: all
    /// evidence where there is a calibrator for it.
    #[arg(long)]
    ranking: Option<RankingFlag>,
    /// Removes vessels that would have had to sail faster; needs times and positions, see --manifest.
    #[arg(long, value_name = "KNOTS")]
    max_speed: Option<f64>,
    /// Leaves out candidates below this cosine, -1 to 1.
    #[arg(long, value_name = "COSINE", allow_hyphen_values = true, value_parser = between(-1.0, 1.0))]
    min_similarity: Option<f64>,
    /// Leaves out candidates below this probability, 0 to 1; needs a calibrator on the server.
    #[arg(long, value_name = "PROBABILITY", value_parser = between(0.0, 1.0))]
    min_probability: Option<f64>,
    /// Number of entries to re-rank by their common neighbours.
    #[arg(long, value_name = "ENTRIES")]
    rerank_depth: Option<u32>,
    /// Prior probability that a ship is not in the gallery.
    #[arg(long, value_name = "PROBABILITY")]
    prior_unknown: Option<f64>,
    /// Assigns the queries to distinct vessels.
    #[arg(long)]
    distinct: bool,
    /// Metadata of the files, as for gallery enroll; - reads it from standard input.
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Prints a JSON object for each query: MatchResponse of the contract, with one result.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerFlag,
    #[command(flatten)]
    filter: FilterFlags,
}

#[derive(Clone, Copy, ValueEnum)]
enum RankingFlag {
    Cosine,
    Fused,
}

impl Match {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let filter = self.filter.filter()?;
        let queries = self.queries()?;
        let client = self.server.connect().await?;
        // A joint assignment needs all queries in one call.
        let batch = if self.distinct { queries.len() } else { BATCH };
        let mut failed = 0;
        for queries in queries.chunks(batch) {
            let response = client.match_ships(self.request(queries, filter.clone())).await?;
            failed += response.results.iter().filter(|result| result.error.is_some()).count();
            for result in &response.results {
                if self.json {
                    output::say(json(&answer_of(result, &response)));
                } else {
                    output::say(format_args!("{}\n", result_text(result, &response)));
                }
            }
        }
        if failed > 0 { bail!("{failed} of {} queries failed", queries.len()) } else { Ok(()) }
    }

    fn queries(&self) -> anyhow::Result<Vec<MatchQuery>> {
        let files = self.chips.found()?;
        let known = known_of(self.manifest.as_deref(), &files)?;
        let mut queries: Vec<MatchQuery> = Vec::new();
        for (file, known) in files.into_iter().zip(known) {
            let file = self.chips.read_one(file)?;
            let mut chip: Chip = file.chip;
            chip.observation = known.observation();
            chip.pixel_size_x_m = known.pixel_size_x_m.or(chip.pixel_size_x_m);
            chip.pixel_size_y_m = known.pixel_size_y_m.or(chip.pixel_size_y_m);
            match queries.last_mut() {
                Some(MatchQuery { subject: Some(Subject::Tracklet(tracklet)), .. }) if self.tracklet => {
                    tracklet.chips.push(chip);
                }
                _ => queries.push(MatchQuery {
                    query_id: file.name,
                    subject: Some(Subject::Tracklet(Tracklet { chips: vec![chip] })),
                    ..MatchQuery::default()
                }),
            }
        }
        Ok(queries)
    }

    fn request(&self, queries: &[MatchQuery], filter: Option<EntryFilter>) -> MatchRequest {
        MatchRequest {
            gallery: self.gallery.clone(),
            queries: queries.to_vec(),
            top_k: self.k,
            group_by: if self.by_entry { GroupBy::Entry } else { GroupBy::Vessel }.into(),
            filter,
            max_speed_knots: self.max_speed,
            ranking: match self.ranking {
                None => Ranking::Unspecified,
                Some(RankingFlag::Cosine) => Ranking::Cosine,
                Some(RankingFlag::Fused) => Ranking::Fused,
            }
            .into(),
            rerank_depth: self.rerank_depth,
            prior_unknown: self.prior_unknown,
            distinct_vessels: self.distinct,
            min_similarity: self.min_similarity,
            min_probability: self.min_probability,
            with_details: true,
            ..MatchRequest::default()
        }
    }
}

/// A query's ranking for people.
pub fn result_text(result: &MatchResult, response: &MatchResponse) -> String {
    if let Some(error) = &result.error {
        return format!("{}: {} ({})", result.query_id, error.message, error.reason);
    }
    let ranked = match result.ranking() {
        Ranking::Fused => ", ranked by all evidence",
        Ranking::ReciprocalRank => ", ranked by the members of the ensemble",
        Ranking::Unspecified | Ranking::Cosine => "",
    };
    let mut lines = vec![format!("{}: {} entries searched{ranked}", result.query_id, result.matched)];
    for removed in &result.removed {
        lines.push(format!("  {} removed: {}", removed.count, removed.reason));
    }
    for warning in &result.warnings {
        lines.push(format!("  {} ({})", warning.message, warning.code));
    }
    lines.push(candidates(&result.candidates).to_string());
    match result.unknown_probability {
        Some(unknown) => lines.push(format!("  none of these: {:.1} %", unknown * 100.0)),
        None if response.calibrator.is_empty() => {
            lines.push("  uncalibrated: similarities are not probabilities".into());
        }
        None => {}
    }
    lines.join("\n")
}

/// The ranking as a table. Columns in which nothing stands are left out.
fn candidates(candidates: &[Candidate]) -> Table {
    let rows: Vec<[String; COLUMNS.len()]> =
        (1..).zip(candidates).map(|(rank, candidate)| row(rank, candidate)).collect();
    let shown: Vec<usize> = (0..COLUMNS.len())
        .filter(|column| *column < ALWAYS_SHOWN || rows.iter().any(|row| !row[*column].is_empty()))
        .collect();
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(shown.iter().map(|column| COLUMNS[*column]));
    for row in &rows {
        table.add_row(shown.iter().map(|column| row[*column].clone()));
    }
    table
}

fn row(rank: usize, candidate: &Candidate) -> [String; COLUMNS.len()] {
    let optional = |value: Option<f64>, digits: usize| {
        value.map_or_else(String::new, |value| format!("{value:.digits$}"))
    };
    let evidence = candidate.evidence.iter();
    let evidence = evidence.map(|term| format!("{} {:+.2}", term.term, term.log_likelihood_ratio));
    let unchecked = candidate.gate_unchecked.then(|| "(gate unchecked)".to_owned());
    let observation = candidate.observation.clone().unwrap_or_default();
    [
        rank.to_string(),
        candidate.vessel_id.clone(),
        candidate.entry_id.clone(),
        candidate.entries.to_string(),
        format!("{:+.4}", candidate.similarity),
        optional(candidate.probability, 3),
        optional(candidate.implied_speed_knots, 1),
        evidence.chain(unchecked).collect::<Vec<_>>().join(", "),
        modality(candidate.modality()),
        time(observation.observed_at),
        position(&observation),
        labels(&candidate.labels),
    ]
}

/// The answer to one of several queries of a call.
fn answer_of(result: &MatchResult, response: &MatchResponse) -> MatchResponse {
    MatchResponse {
        results: vec![result.clone()],
        model: response.model.clone(),
        calibrator: response.calibrator.clone(),
        timings: None,
        gallery_commit: response.gallery_commit,
        gallery_age: response.gallery_age,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use shipreid::wire::{Modality, Observation};

    use super::*;

    fn header(found: &[Candidate]) -> String {
        let table = candidates(found).to_string();
        table.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_ranking_has_the_columns_in_which_something_stands() {
        let bare = Candidate { entry_id: "a.tif".into(), ..Candidate::default() };
        assert_eq!(header(std::slice::from_ref(&bare)), "vessel best entry entries similarity");
        assert_eq!(header(&[]), "vessel best entry entries similarity");
        let detailed = Candidate {
            modality: Modality::Sar.into(),
            observation: Some(Observation {
                latitude: Some(51.5),
                longitude: Some(4.0),
                ..Observation::default()
            }),
            labels: HashMap::from([("port".into(), "west".into()), ("fleet".into(), "tugs".into())]),
            gate_unchecked: true,
            ..bare.clone()
        };
        let both = [bare, detailed];
        assert_eq!(header(&both), "vessel best entry entries similarity evidence modality position labels");
        let table = candidates(&both).to_string();
        let last = table.lines().last().unwrap_or_default();
        for expected in ["2", "a.tif", "(gate unchecked)", "sar", "51.5000, 4.0000", "fleet=tugs port=west"] {
            assert!(last.contains(expected), "{expected}: {last}");
        }
    }
}
