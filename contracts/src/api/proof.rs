//! The proof that a job's outcome is on chain.

use alloy::primitives::{Address, B256};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{id::JobId, registry};

/// Everything `JobsRegistry.verify` asks for, and what the leaf is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProofResponse {
    /// The job.
    pub job_id: JobId,
    /// The job's outcome as sealed.
    pub leaf: LeafView,
    /// Siblings from the leaf to `batch.jobs_root`.
    #[schema(value_type = Vec<String>)]
    pub job_proof: Vec<B256>,
    /// The batch the job is part of.
    pub batch: BatchView,
    /// Siblings from the batch's commitment to its peak at `at_block`.
    #[schema(value_type = Vec<String>)]
    pub batch_proof: Vec<B256>,
    /// The block at which `batch_proof` holds.
    pub at_block: BlockRef,
    /// The chain.
    pub chain_id: u64,
    /// The contract on it.
    #[schema(value_type = String)]
    pub registry: Address,
    /// The transaction that confirmed the batch.
    #[schema(value_type = String)]
    pub transaction_hash: B256,
    /// What the hashes were made with: `contentHash = keccak256(salt ‖ payload bytes)`; absent once
    /// the job was erased.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub salt: Option<B256>,
}

/// A job's outcome as sealed on chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeafView {
    /// The job's number on the contract.
    pub sequence: u64,
    /// The job's UUID in the first 16 of 32 bytes.
    #[schema(value_type = String)]
    pub job_id: B256,
    /// The address that may prove it, or zero.
    #[schema(value_type = String)]
    pub submitter: Address,
    /// Keccak-256 of the tenant's id.
    #[schema(value_type = String)]
    pub tenant: B256,
    /// Keccak-256 of salt and payload.
    #[schema(value_type = String)]
    pub content_hash: B256,
    /// Keccak-256 of salt and result (or error).
    #[schema(value_type = String)]
    pub result_hash: B256,
    /// 1 completed, 2 failed.
    pub status: u8,
}

/// A batch as its commitment names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BatchView {
    /// Counted from 1.
    pub batch_number: u64,
    /// The sequence of its first job.
    pub first_sequence: u64,
    /// How many jobs it holds.
    pub job_count: u32,
    /// The root of the tree of its jobs.
    #[schema(value_type = String)]
    pub jobs_root: B256,
}

/// A block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BlockRef {
    /// Its height.
    pub number: u64,
    /// Its hash.
    #[schema(value_type = String)]
    pub hash: B256,
}

impl From<&registry::Leaf> for LeafView {
    fn from(leaf: &registry::Leaf) -> Self {
        Self {
            sequence: leaf.sequence,
            job_id: leaf.jobId,
            submitter: leaf.submitter,
            tenant: leaf.tenant,
            content_hash: leaf.contentHash,
            result_hash: leaf.resultHash,
            status: leaf.status,
        }
    }
}

impl From<&LeafView> for registry::Leaf {
    fn from(view: &LeafView) -> Self {
        Self {
            sequence: view.sequence,
            jobId: view.job_id,
            submitter: view.submitter,
            tenant: view.tenant,
            contentHash: view.content_hash,
            resultHash: view.result_hash,
            status: view.status,
        }
    }
}

impl From<&registry::BatchRef> for BatchView {
    fn from(batch: &registry::BatchRef) -> Self {
        Self {
            batch_number: batch.batchNumber,
            first_sequence: batch.firstSequence,
            job_count: batch.jobCount,
            jobs_root: batch.jobsRoot,
        }
    }
}

impl From<&BatchView> for registry::BatchRef {
    fn from(view: &BatchView) -> Self {
        Self {
            batchNumber: view.batch_number,
            firstSequence: view.first_sequence,
            jobCount: view.job_count,
            jobsRoot: view.jobs_root,
        }
    }
}
