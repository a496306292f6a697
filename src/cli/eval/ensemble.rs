//! An ensemble in the report of a test set: its fused ranking, as Match fuses it, and each member alone.

use std::collections::HashSet;

use anyhow::anyhow;
use serde_json::{Value, json};
use shipreid::app::LoadedModel;
use shipreid::client::{Client, ClientError};
use shipreid::embedding::{Composition, Embedding, Part};
use shipreid::evaluate::{LabelledImage, Protocol, rank};
use shipreid::matching::fuse_ranks;
use shipreid::wire::{self, GetModelRequest};

use super::{Embedded, rows, search};

/// The members of an ensemble, by digest, and how they are combined.
pub struct Makeup {
    composition: Composition,
    members: Vec<String>,
}

impl Makeup {
    /// `None` for a model that is no ensemble.
    pub fn of_loaded(model: &LoadedModel) -> Option<Self> {
        let members = model.card.members.as_ref()?;
        let digests = members.digests().map(|digest| digest.to_string());
        Some(Self { composition: members.composition, members: digests.collect() })
    }

    /// The same for a model of a server.
    ///
    /// # Errors
    /// The server cannot be asked, or describes no ensemble that this program knows.
    pub async fn of_served(client: &Client, digest: &str) -> anyhow::Result<Option<Self>> {
        let request = GetModelRequest { digest: digest.to_owned() };
        let answer = client.models().get_model(request).await.map_err(ClientError::from)?.into_inner();
        let Some(wire::Ensemble { members, k, depth }) = answer.model.and_then(|model| model.ensemble) else {
            return Ok(None);
        };
        let part = |member: &wire::EnsembleMember| Part {
            dimension: member.dimension as usize,
            weight: member.weight,
        };
        let parts: Vec<Part> = members.iter().map(part).collect();
        let composition = Composition::new(&parts, k, depth);
        let composition = composition.map_err(|cause| anyhow!("the server's model {digest}: {cause}"))?;
        Ok(Some(Self { composition, members: members.into_iter().map(|member| member.digest).collect() }))
    }

    /// Ranks all of `gallery` for each query by the members' ranks, and what none of them has within the depth by the
    /// weighted mean of their cosines.
    pub fn rank(&self, queries: &[&Embedding], gallery: &[&Embedding]) -> Vec<Vec<usize>> {
        let alone = |member: usize| {
            let vectors = |embeddings: &[&Embedding]| -> Vec<Vec<f32>> {
                embeddings.iter().map(|embedding| self.vector(embedding, member)).collect()
            };
            let (queries, gallery) = (vectors(queries), vectors(gallery));
            search(&queries.iter().collect::<Vec<_>>(), &gallery.iter().collect::<Vec<_>>())
        };
        let by_member: Vec<Vec<Vec<usize>>> = (0..self.members.len()).map(alone).collect();
        let by_cosine = search(queries, gallery);
        let fused = by_cosine.into_iter().enumerate().map(|(query, by_cosine)| {
            let lists: Vec<Vec<usize>> = by_member.iter().map(|rankings| rankings[query].clone()).collect();
            let mut ranking: Vec<usize> =
                fuse_ranks(&lists, &self.composition).into_iter().map(|fused| fused.key).collect();
            let known: HashSet<usize> = ranking.iter().copied().collect();
            ranking.extend(by_cosine.into_iter().filter(|place| !known.contains(place)));
            ranking
        });
        fused.collect()
    }

    /// How each member ranks alone.
    pub fn report(&self, embedded: &Embedded, protocols: &[Protocol]) -> Value {
        let member = |(number, (digest, part)): (usize, (&String, &Part))| {
            let vectors = |images: &[(LabelledImage, Embedding)]| -> Vec<(LabelledImage, Vec<f32>)> {
                images.iter().map(|(label, embedding)| (*label, self.vector(embedding, number))).collect()
            };
            let (queries, gallery) = (vectors(&embedded.queries), vectors(&embedded.gallery));
            let alone = |protocol| rank(protocol, &queries, &gallery, search);
            let rows = rows(protocols, |protocol| alone(protocol).map(|ranked| ranked.scores));
            json!({ "model": digest, "weight": part.weight, "protocols": rows })
        };
        let members = self.members.iter().zip(self.composition.parts()).enumerate().map(member);
        json!({
            "k": self.composition.k(),
            "depth": self.composition.depth(),
            "members": members.collect::<Vec<_>>(),
        })
    }

    fn vector(&self, embedding: &Embedding, member: usize) -> Vec<f32> {
        self.composition.unit_parts(embedding.as_slice()).swap_remove(member)
    }
}
