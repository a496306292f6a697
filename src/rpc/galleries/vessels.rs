//! ListVessels: the vessels that a gallery contains.

use std::sync::Arc;

use super::super::context::CallContext;
use super::super::convert;
use super::super::page::{after, next_token, page_size};
use super::super::problem::Problem;
use super::{GalleriesService, filter};
use crate::gallery::{Readable, VesselId};
use crate::wire;

impl GalleriesService {
    pub(super) async fn vessels(
        &self,
        context: &CallContext,
        request: wire::ListVesselsRequest,
    ) -> Result<wire::ListVesselsResponse, Problem> {
        let read = convert::read(request.read, request.min_commit)?;
        let Readable { gallery, age } = self.access.readable(&context.tenant, &request.gallery, read).await?;
        let filter = Arc::new(filter(request.filter)?);
        let after = Arc::new(after::<VesselId>(&request.page_token)?);
        let size = page_size(request.page_size)?;
        gallery
            .read(|snapshot| {
                let (filter, after) = (Arc::clone(&filter), Arc::clone(&after));
                self.access.read(context, move |cancellation| {
                    let page = snapshot.list_vessels(&filter, (*after).as_ref(), size, cancellation)?;
                    Ok(wire::ListVesselsResponse {
                        next_page_token: next_token(page.next.as_ref()),
                        vessels: page.vessels.into_iter().map(convert::vessel).collect(),
                        gallery_commit: snapshot.commit(),
                        gallery_age: convert::duration(age),
                    })
                })
            })
            .await
    }
}
