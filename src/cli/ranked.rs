//! `shipreid match`: finds the ships of a gallery that image files show.

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, ValueEnum};
use comfy_table::{Table, presets};
use serde_json::{Value, json};
use shipreid::wire::match_query::Subject;
use shipreid::wire::{
    Candidate, Chip, EntryFilter, GroupBy, MatchQuery, MatchRequest, MatchResponse, MatchResult, Ranking,
    Tracklet,
};

use super::chips::ChipFlags;
use super::filter::FilterFlags;
use super::known::known_of;
use super::{ServerFlag, output};

/// Queries in one call.
const BATCH: usize = 16;

#[derive(Args)]
#[command(after_help = "\
Examples:
  shipreid match 0003_s01c1_SAR.tif --gallery harbour
  shipreid match 0003_s01c1_SAR.tif --gallery harbour --among optical --from 2026-03-01T00:00:00Z --label port=west
  shipreid match pass/*.tif --gallery harbour --tracklet --manifest pass.jsonl --max-speed 40")]
pub struct Match {
    #[command(flatten)]
    chips: ChipFlags,
    #[arg(long, value_name = "NAME")]
    gallery: String,
    /// Candidates for each query.
    #[arg(long, default_value_t = 10)]
    k: u32,
    /// All files show the same ship and form one query.
    #[arg(long)]
    tracklet: bool,
    /// Ranks entries instead of vessels.
    #[arg(long)]
    by_entry: bool,
    #[arg(long, default_value = "cosine")]
    ranking: RankingFlag,
    /// Removes vessels that would have had to sail faster; needs times and positions, see --manifest.
    #[arg(long, value_name = "KNOTS")]
    max_speed: Option<f64>,
    /// Leaves out candidates below this cosine, -1 to 1.
    #[arg(long, value_name = "COSINE", allow_hyphen_values = true)]
    min_similarity: Option<f64>,
    /// Leaves out candidates below this probability, 0 to 1; needs a calibrator on the server.
    #[arg(long, value_name = "PROBABILITY")]
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
    /// What is known of the files, as for gallery enroll.
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Prints one JSON object per query.
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
                    output::say(result_json(result, &response));
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
            top_k: Some(self.k),
            group_by: if self.by_entry { GroupBy::Entry } else { GroupBy::Vessel }.into(),
            filter,
            max_speed_knots: self.max_speed,
            ranking: match self.ranking {
                RankingFlag::Cosine => Ranking::Cosine,
                RankingFlag::Fused => Ranking::Fused,
            }
            .into(),
            rerank_depth: self.rerank_depth,
            prior_unknown: self.prior_unknown,
            distinct_vessels: self.distinct,
            min_similarity: self.min_similarity,
            min_probability: self.min_probability,
            ..MatchRequest::default()
        }
    }
}

/// A query's ranking for people.
pub fn result_text(result: &MatchResult, response: &MatchResponse) -> String {
    if let Some(error) = &result.error {
        return format!("{}: {} ({})", result.query_id, error.message, error.reason);
    }
    let mut lines = vec![format!("{}: {} entries could match", result.query_id, result.matched)];
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
            lines.push("  uncalibrated: a similarity is no probability".into());
        }
        None => {}
    }
    lines.join("\n")
}

fn candidates(candidates: &[Candidate]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "",
        "vessel",
        "best entry",
        "entries",
        "similarity",
        "probability",
        "knots",
        "evidence",
    ]);
    for (rank, candidate) in (1..).zip(candidates) {
        let optional = |value: Option<f64>, digits: usize| {
            value.map_or_else(String::new, |value| format!("{value:.digits$}"))
        };
        let evidence = candidate.evidence.iter();
        let evidence = evidence.map(|term| format!("{} {:+.2}", term.term, term.log_likelihood_ratio));
        let unchecked = if candidate.gate_unchecked { " (gate unchecked)" } else { "" };
        table.add_row([
            rank.to_string(),
            candidate.vessel_id.clone(),
            candidate.entry_id.clone(),
            candidate.entries.to_string(),
            format!("{:+.4}", candidate.similarity),
            optional(candidate.probability, 3),
            optional(candidate.implied_speed_knots, 1),
            evidence.collect::<Vec<_>>().join(", ") + unchecked,
        ]);
    }
    table
}

fn result_json(result: &MatchResult, response: &MatchResponse) -> Value {
    if let Some(error) = &result.error {
        return json!({
            "query": result.query_id,
            "error": { "reason": error.reason, "message": error.message, "field": error.field },
        });
    }
    let candidate = |candidate: &Candidate| {
        let evidence = candidate.evidence.iter();
        json!({
            "entry": candidate.entry_id,
            "vessel": candidate.vessel_id,
            "similarity": candidate.similarity,
            "probability": candidate.probability,
            "evidence": evidence.map(|e| (e.term.clone(), json!(e.log_likelihood_ratio))).collect::<Value>(),
            "implied_speed_knots": candidate.implied_speed_knots,
            "entries": candidate.entries,
            "gate_unchecked": candidate.gate_unchecked,
        })
    };
    let removed = result.removed.iter().map(|removed| (removed.reason.clone(), json!(removed.count)));
    json!({
        "query": result.query_id,
        "model": response.model,
        "calibrator": response.calibrator,
        "matched": result.matched,
        "removed": removed.collect::<Value>(),
        "exact": result.exact,
        "unknown_probability": result.unknown_probability,
        "warnings": result.warnings.iter().map(|warning| &warning.code).collect::<Vec<_>>(),
        "candidates": result.candidates.iter().map(candidate).collect::<Vec<_>>(),
    })
}
