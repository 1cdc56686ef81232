//! Proofs: asked for over the real router, believed by the real contract.

use alloy::primitives::{Address, B256};
use axum::{body::Body, http::Request, response::Response};
use contracts::{
    api::proof::ProofResponse,
    assertion::{self, Audience, Claims, Role, Scope},
    event::{Completed, Kind, Purged},
    id::{JobId, RequestId, TenantId},
    merkle,
    problem::ProblemDetails,
    registry::{BatchRef, JobsRegistry::verifyCall, Leaf},
};
use ops::{clock::Clock, config::Key32, testing::eventually};
use tower::ServiceExt as _;

use crate::{
    DEADLINE,
    node::Node,
    world::{SUBJECT, World},
};

const KEY: [u8; 32] = [7; 32];

/// Who asks.
struct Caller {
    tenant: TenantId,
    subject: &'static str,
    team: Option<&'static str>,
    scopes: &'static [Scope],
}

impl World {
    fn owner(&self) -> Caller {
        let scopes = &[Scope::JobsRead];
        Caller {
            tenant: self.tenant,
            subject: SUBJECT,
            team: None,
            scopes,
        }
    }

    async fn ask(&self, job: JobId, caller: &Caller) -> Response {
        let clock = Clock::system();
        let path = format!("/v1/jobs/{job}/proof");
        let claims = Claims {
            aud: Audience::Relayer,
            tenant: caller.tenant,
            subject: caller.subject.parse().unwrap(),
            scopes: caller.scopes.to_vec(),
            role: Role::Developer,
            team: caller.team.map(|team| team.parse().unwrap()),
            submitter: None,
            active_jobs_limit: None,
            priority: 5,
            address: [127, 0, 0, 1].into(),
            request_id: RequestId::generate(clock.now()),
            traceparent: None,
            method: "GET".to_owned(),
            path: path.clone(),
            body_sha256: assertion::sha256_hex(b""),
            expires_at: clock.now().as_second() + 20,
        };
        let header = assertion::sign(&claims, &KEY);
        let request = Request::get(path)
            .header(assertion::HEADER, header)
            .body(Body::empty());
        let router = relayer::api::router(self.pool.clone(), &Key32::from(KEY), clock);
        router.oneshot(request.unwrap()).await.unwrap()
    }

    async fn status(&self, job: JobId, caller: &Caller) -> u16 {
        self.ask(job, caller).await.status().as_u16()
    }

    pub(crate) async fn proof(&self, job: JobId) -> ProofResponse {
        let response = self.ask(job, &self.owner()).await;
        assert_eq!(response.status(), 200, "{job}");
        let body = axum::body::to_bytes(response.into_body(), 1 << 20)
            .await
            .unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    /// Whether the contract believes the proof at a block.
    async fn believes(&self, proof: &ProofResponse, batch_proof: &[B256], at: &str) -> bool {
        let call = verifyCall {
            leaf: Leaf::from(&proof.leaf),
            jobProof: proof.job_proof.clone(),
            batch: BatchRef::from(&proof.batch),
            batchProof: batch_proof.to_vec(),
        };
        self.node.view(proof.registry, &call, at).await
    }

    /// Asserts that contract and library believe each job's proof, and nothing else.
    pub(crate) async fn assert_proven(&self, jobs: &[JobId]) {
        let logs = self.node.confirmed(self.registry).await;
        let commitments: Vec<B256> = logs.iter().map(|(log, _)| log.commitment).collect();
        for job in jobs {
            let proof = self.proof(*job).await;
            assert_eq!(proof.registry, self.registry);
            let leaf = Leaf::from(&proof.leaf).hash();
            let root = proof.batch.jobs_root;
            assert!(merkle::verify_job_proof(root, leaf, &proof.job_proof));
            let at = format!("{:#x}", proof.at_block.number);
            assert!(
                self.believes(&proof, &proof.batch_proof, &at).await,
                "{job} at its block"
            );
            let index = usize::try_from(proof.batch.batch_number - 1).unwrap();
            let completed = merkle::batch_proof(&commitments, index).unwrap();
            assert!(
                self.believes(&proof, &completed, "latest").await,
                "{job} now"
            );
            let mut altered = proof.clone();
            altered.leaf.result_hash = B256::ZERO;
            assert!(!self.believes(&altered, &completed, "latest").await);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proof_is_for_those_who_see_the_job() {
    let world = World::on(Node::start()).await;
    let owner = world.owner();
    let relayer = world.relayer();
    let [job] = world.complete(1, false).await.try_into().unwrap();
    let unsealed = JobId::generate(Clock::system().now());
    let kind = Kind::Completed(Completed::default());
    world.publish(&[world.event(unsealed, 3, kind)]).await;
    world.told_of(&[job]).await;
    drop(relayer);

    assert_eq!(world.status(job, &owner).await, 200);
    assert_eq!(world.status(unsealed, &owner).await, 404);
    let other = |subject, team, scopes| Caller {
        tenant: world.tenant,
        subject,
        team,
        scopes,
    };
    let read = &[Scope::JobsRead][..];
    let team = &[Scope::JobsRead, Scope::JobsReadTeam][..];
    let admin = &[Scope::JobsRead, Scope::JobsAdmin][..];
    assert_eq!(
        world
            .status(job, &other("user_2", Some("team_1"), read))
            .await,
        404
    );
    assert_eq!(
        world
            .status(job, &other("user_2", Some("team_1"), team))
            .await,
        200
    );
    assert_eq!(
        world
            .status(job, &other("user_2", Some("team_2"), team))
            .await,
        404
    );
    assert_eq!(world.status(job, &other("user_2", None, admin)).await, 200);
    // Each of these scopes lets one read jobs without the others.
    let team = &[Scope::JobsReadTeam][..];
    assert_eq!(
        world
            .status(job, &other("user_2", Some("team_1"), team))
            .await,
        200
    );
    let admin = &[Scope::JobsAdmin][..];
    assert_eq!(world.status(job, &other("user_2", None, admin)).await, 200);
    let submit = &[Scope::JobsSubmit][..];
    for scopes in [&[][..], submit] {
        assert_eq!(world.status(job, &other(SUBJECT, None, scopes)).await, 403);
    }
    let elsewhere = TenantId::generate(Clock::system().now());
    assert_eq!(
        world
            .status(
                job,
                &Caller {
                    tenant: elsewhere,
                    ..owner
                }
            )
            .await,
        404
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_waits_has_no_proof_yet_and_says_when_to_ask_again() {
    let mut world = World::on(Node::start()).await;
    world.set("BATCH_MAX_AGE_MS", "600000");
    let _relayer = world.relayer();
    let [job] = world.complete(1, false).await.try_into().unwrap();
    let waiting = "SELECT EXISTS (SELECT FROM relayer.confirmations)";
    world.until("the job is known", waiting).await;
    let response = world.ask(job, &world.owner()).await;
    assert_eq!(response.status(), 404);
    assert!(response.headers().contains_key("retry-after"));
    let body = axum::body::to_bytes(response.into_body(), 1 << 20)
        .await
        .unwrap();
    let problem: ProblemDetails = serde_json::from_slice(&body).unwrap();
    assert_eq!(problem.code.as_str(), "PROOF_NOT_FOUND");
    assert!(problem.detail.unwrap().contains("waits for a batch"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_proof_is_completed_from_logs_and_an_erased_job_keeps_its_proof() {
    let world = World::on(Node::start()).await;
    let _relayer = world.relayer();
    let [job] = world.complete(1, true).await.try_into().unwrap();
    world.told_of(&[job]).await;
    let old = world.proof(job).await;
    assert!(old.salt.is_some());
    let later = world.complete(100, true).await;
    let told = world.told_of(&later).await;
    assert_eq!(told.len(), 101, "each individual confirmation is a batch");

    assert!(!world.believes(&old, &old.batch_proof, "latest").await);
    let logs = world.node.confirmed(world.registry).await;
    let commitments: Vec<B256> = logs.iter().map(|(log, _)| log.commitment).collect();
    let completed = merkle::batch_proof(&commitments, 0).unwrap();
    assert!(
        completed.starts_with(&old.batch_proof),
        "a path only grows at its end"
    );
    assert!(world.believes(&old, &completed, "latest").await);
    assert_eq!(world.proof(job).await.batch_proof, completed);
    world.assert_proven(&later[..20]).await;

    world
        .publish(&[world.event(job, 4, Kind::Purged(Purged {}))])
        .await;
    eventually("the salt is gone", DEADLINE, || async {
        world.proof(job).await.salt.is_none().then_some(())
    })
    .await;
    let erased = world.proof(job).await;
    assert!(world.believes(&erased, &erased.batch_proof, "latest").await);
    assert_eq!(erased.leaf.submitter, Address::ZERO);
}
