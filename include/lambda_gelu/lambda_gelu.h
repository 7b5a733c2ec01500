#pragma once

/// The whole public interface.
#include <lambda_gelu/math/hardness.h>
#include <lambda_gelu/math/histogram.h>
#include <lambda_gelu/math/relu_gap.h>
#include <lambda_gelu/math/schedule.h>
#include <lambda_gelu/math/targets.h>
#include <lambda_gelu/nn/bias_correction.h>
#include <lambda_gelu/nn/hardness_scheduler.h>
#include <lambda_gelu/nn/init.h>
#include <lambda_gelu/nn/lambda_gelu.h>
#include <lambda_gelu/nn/param_groups.h>
#include <lambda_gelu/nn/sites.h>
#include <lambda_gelu/nn/statistics.h>
#include <lambda_gelu/nn/substitution.h>
#include <lambda_gelu/nn/targets.h>
#include <lambda_gelu/ops/cpu_target.h>
#include <lambda_gelu/ops/functional.h>
#include <lambda_gelu/ops/gradient_reuse.h>
#include <lambda_gelu/ops/observe.h>
