//! What assertions say about a principal, kept ready from request to request, for each upstream.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use contracts::assertion::{About, Audience, Stated};

use crate::{auth::Principal, snapshot::Plan};

/// How many upstreams there are.
const AUDIENCES: usize = 4;

/// Of one credential.
#[derive(Debug, Default)]
pub struct Ready([ArcSwapOption<Written>; AUDIENCES]);

/// What was stated, and the plan that went into it.
#[derive(Debug)]
struct Written {
    plan: Arc<Plan>,
    stated: Arc<Stated>,
}

impl Principal {
    /// What is stated about them to an upstream.
    #[must_use]
    pub fn stated(&self, to: Audience) -> Arc<Stated> {
        let place = &self.credential.ready().0[to as usize];
        let plan = &self.tenant.plan;
        if let Some(written) = &*place.load()
            && Arc::ptr_eq(&written.plan, plan)
        {
            return Arc::clone(&written.stated);
        }
        let identity = self.identity();
        let about = About {
            aud: to,
            tenant: identity.tenant,
            subject: &identity.subject,
            scopes: &identity.scopes,
            role: identity.role,
            team: identity.team.as_ref(),
            submitter: identity.submitter,
            active_jobs_limit: Some(self.active_jobs_limit()),
            priority: plan.priority,
        };
        let stated = Arc::new(about.stated());
        place.store(Some(Arc::new(Written {
            plan: Arc::clone(plan),
            stated: Arc::clone(&stated),
        })));
        stated
    }
}
