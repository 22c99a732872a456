#pragma once

// What tests ask of the stand-in for NCCL (fake_nccl.cpp), beside NCCL's own functions.
extern "C" {

// Calls of ncclAllReduce, ncclReduce and ncclBroadcast that came to an end, on all ranks, since the last one of these.
int FakeNcclTakeCount();
// The first thing that was wrong with a call since the last one of these; "" when nothing was.
const char* FakeNcclTakeComplaint();
// Whether a collective happens as soon as every rank has posted it, rather than when somebody asks.
void FakeNcclEager(int is);
// From now on every collective ends in this code of NCCL's; 0: in success.
void FakeNcclFail(int code);
}
