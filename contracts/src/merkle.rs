//! The two trees of a proof, as the contract and OpenZeppelin's libraries make them: the tree of a
//! batch's jobs (StandardMerkleTree) and the mountain range of batch commitments.

use alloy::primitives::{B256, keccak256};

/// The tree over a batch's leaves, as `@openzeppelin/merkle-tree` lays it out: a complete binary
/// tree in an array, root first, with the leaf hashes in descending order at its end. A node is the
/// hash of its children, the smaller first, so a proof needs no sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobsTree {
    nodes: Vec<B256>,
    /// Where in `nodes` each leaf stands, in the order they were given.
    places: Vec<usize>,
}

impl JobsTree {
    /// The tree over `leaves` (leaf hashes, see `registry::Leaf::hash`), or `None` without any.
    #[must_use]
    pub fn new(leaves: &[B256]) -> Option<Self> {
        let inner = leaves.len().checked_sub(1)?;
        let mut order: Vec<usize> = (0..leaves.len()).collect();
        order.sort_by_key(|&leaf| leaves[leaf]);
        let mut nodes = vec![B256::ZERO; inner + leaves.len()];
        let mut places = vec![0; leaves.len()];
        for (rank, leaf) in order.into_iter().enumerate() {
            let place = nodes.len() - 1 - rank;
            nodes[place] = leaves[leaf];
            places[leaf] = place;
        }
        for place in (0..inner).rev() {
            nodes[place] = sorted_pair(nodes[2 * place + 1], nodes[2 * place + 2]);
        }
        Some(Self { nodes, places })
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> B256 {
        self.nodes[0]
    }

    /// The siblings from the leaf given at `index` up to the root, or `None` beyond the last leaf.
    #[must_use]
    pub fn proof(&self, index: usize) -> Option<Vec<B256>> {
        let mut place = *self.places.get(index)?;
        let mut proof = Vec::new();
        while place > 0 {
            // Children of a node stand side by side, the left one at an odd place.
            let sibling = if place % 2 == 1 { place + 1 } else { place - 1 };
            proof.push(self.nodes[sibling]);
            place = (place - 1) / 2;
        }
        Some(proof)
    }
}

/// Whether `proof` leads from `leaf` to `root` (OpenZeppelin `MerkleProof.verify`).
#[must_use]
pub fn verify_job_proof(root: B256, leaf: B256, proof: &[B256]) -> bool {
    proof
        .iter()
        .fold(leaf, |node, sibling| sorted_pair(node, *sibling))
        == root
}

/// The peaks of the range over `commitments`, by height; `None` where the contract's slot counts
/// for nothing.
#[must_use]
pub fn peaks(commitments: &[B256]) -> Vec<Option<B256>> {
    let mut peaks: Vec<Option<B256>> = Vec::new();
    for commitment in commitments {
        let mut node = *commitment;
        let mut height = 0;
        // Like carrying in a binary counter: each peak in the way is a finished tree to our left.
        while let Some(left) = peaks.get_mut(height).and_then(Option::take) {
            node = pair(left, node);
            height += 1;
        }
        if height == peaks.len() {
            peaks.push(None);
        }
        peaks[height] = Some(node);
    }
    peaks
}

/// The siblings from the commitment at `index` (batch number − 1) up to its peak in the range over
/// `commitments` (all of them, in order), or `None` beyond the last one.
#[must_use]
pub fn batch_proof(commitments: &[B256], index: usize) -> Option<Vec<B256>> {
    let height = peak_height(commitments.len(), index)?;
    // The tree the commitment stands in begins where the lower bits of its index are zero.
    let start = index >> height << height;
    let mut level = commitments[start..start + (1 << height)].to_vec();
    let mut place = index - start;
    let mut proof = Vec::new();
    while level.len() > 1 {
        proof.push(level[place ^ 1]);
        level = level
            .chunks_exact(2)
            .map(|two| pair(two[0], two[1]))
            .collect();
        place /= 2;
    }
    Some(proof)
}

/// Whether `proof` leads from `commitment` at `index` (batch number − 1) to its peak in the range
/// of `count` batches with these `peaks`. Exactly what the contract checks.
#[must_use]
pub fn verify_batch_proof(
    peaks: &[Option<B256>],
    count: usize,
    index: usize,
    commitment: B256,
    proof: &[B256],
) -> bool {
    let Some(height) = peak_height(count, index) else {
        return false;
    };
    if proof.len() != height {
        return false;
    }
    let root = proof
        .iter()
        .enumerate()
        .fold(commitment, |node, (level, sibling)| {
            if index >> level & 1 == 1 {
                pair(*sibling, node)
            } else {
                pair(node, *sibling)
            }
        });
    peaks.get(height).copied().flatten() == Some(root)
}

/// The height of the perfect tree that the leaf at `index` stands in, in a range of `count` leaves.
fn peak_height(count: usize, index: usize) -> Option<usize> {
    // The highest bit in which they differ is set in `count` and clear in `index`.
    let height = (index < count).then(|| (index ^ count).ilog2())?;
    usize::try_from(height).ok()
}

fn pair(left: B256, right: B256) -> B256 {
    let mut both = [0; 64];
    both[..32].copy_from_slice(left.as_slice());
    both[32..].copy_from_slice(right.as_slice());
    keccak256(both)
}

fn sorted_pair(a: B256, b: B256) -> B256 {
    if a < b { pair(a, b) } else { pair(b, a) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(count: usize) -> Vec<B256> {
        (0..count).map(|n| keccak256(n.to_be_bytes())).collect()
    }

    #[test]
    fn every_leaf_of_a_jobs_tree_verifies_and_no_other() {
        assert_eq!(JobsTree::new(&[]), None);
        for count in 1..=200 {
            let leaves = leaves(count);
            let tree = JobsTree::new(&leaves).unwrap();
            let stranger = keccak256(b"stranger");
            for (index, leaf) in leaves.iter().enumerate() {
                let proof = tree.proof(index).unwrap();
                assert!(verify_job_proof(tree.root(), *leaf, &proof));
                assert!(!verify_job_proof(tree.root(), stranger, &proof));
                let other = leaves[(index + 1) % count];
                assert_eq!(verify_job_proof(tree.root(), other, &proof), other == *leaf);
            }
            assert_eq!(tree.proof(count), None);
        }
    }

    #[test]
    fn equal_leaves_each_have_a_proof() {
        let leaves = [keccak256(b"a"), keccak256(b"b"), keccak256(b"a")];
        let tree = JobsTree::new(&leaves).unwrap();
        for (index, leaf) in leaves.iter().enumerate() {
            assert!(verify_job_proof(
                tree.root(),
                *leaf,
                &tree.proof(index).unwrap()
            ));
        }
    }

    #[test]
    fn every_commitment_of_a_range_verifies_at_its_index_only() {
        for count in 1..=200 {
            let commitments = leaves(count);
            let peaks = peaks(&commitments);
            for (index, commitment) in commitments.iter().enumerate() {
                let proof = batch_proof(&commitments, index).unwrap();
                let verify = |index| verify_batch_proof(&peaks, count, index, *commitment, &proof);
                // Every other index in small ranges, in large ones those that share the most.
                let others = (0..=count).filter(|other| count < 40 || (other ^ index) < 4);
                assert!(verify(index) && others.filter(|other| verify(*other)).count() == 1);
                let stranger = keccak256(b"stranger");
                assert!(!verify_batch_proof(&peaks, count, index, stranger, &proof));
            }
            assert_eq!(batch_proof(&commitments, count), None);
        }
    }

    #[test]
    fn a_path_only_grows_at_its_end() {
        let commitments = leaves(130);
        for index in 0..60 {
            let mut before = batch_proof(&commitments[..=index], index).unwrap();
            for count in index + 2..=130 {
                let now = batch_proof(&commitments[..count], index).unwrap();
                assert!(now.starts_with(&before));
                before = now;
            }
        }
    }
}
